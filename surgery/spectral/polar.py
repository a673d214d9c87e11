"""Restored directions with both factors replaced by their nearest orthonormal matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.spectral.svd import svd

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.triplets import Triplets


def restore_polar(start: Triplets, source: Triplets, head: int, tail: int, values: Tensor) -> Tensor:
    """W' = polar(U*) diag(values) polar(V*)^T with U* = [U_b,head | U_rest | U_b,tail] and V* likewise.

    `start` are all n triplets of W and `source` all of b; polar(X) is the orthonormal matrix nearest to X in the
    Frobenius norm, P Q^T for the SVD X = P diag(c) Q^T (Higham 2008, Functions of Matrices, section 8.1). Where X is
    singular the nearest one is not unique; one of them is taken.
    """
    U = _polar(_mixed(source.U, start.U, head, tail))
    U *= values.to(U.dtype)
    return U @ _polar(_mixed(source.V, start.V, head, tail)).mT


def _mixed(source: Tensor, start: Tensor, head: int, tail: int) -> Tensor:
    n = start.shape[1]
    X = source.clone()
    X[:, head : n - tail] = start[:, head : n - tail]
    return X


def _polar(X: Tensor) -> Tensor:
    P, _, Qh = svd(X)
    return P @ Qh
