"""Singular triplets of several matrices side by side, their vectors made orthonormal again.

For X = P diag(c) Q^T (m x k) the matrix with orthonormal columns that is nearest to X is P Q^T, the solution of the
orthogonal Procrustes problem and, the same, X whitened:

    P Q^T = X (X^T X)^{-1/2}.

It comes from the Gram matrix in float64: its condition number is (c_1 / c_k)^2, and errors are eps64 (c_1 / c_i)^2.
Where the columns depend on each other, some c_i = 0, P and Q are not unique and any completion would be as near; here
those directions are left out, so that the columns of the result span no more than those of X.

Sources: Schönemann 1966, A generalized solution of the orthogonal Procrustes problem; Higham 2008, Functions of
Matrices, section 8.1; Gargiulo et al. 2025, arXiv 2412.00081 (both, for singular vectors of tasks).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surgery.spectral.gram import gram, symmetric
from surgery.spectral.svd import LinAlgError, svd
from surgery.spectral.triplets import Triplets, times64

# Directions with c_i / c_1 up to here are left out. At the boundary the error of the others is eps64 / 1e-10 = 1e-6, as
# large as that of float32 vectors.
DEPENDENT = 1e-5


def decorrelated(parts: Sequence[Triplets]) -> Triplets:
    """[U_1 ... U_k] and [V_1 ... V_k] with their columns made orthonormal, and all values, in that order.

    Together the parts have at most min(m, n) triplets; with none the result has none. One part alone is the result.
    Raises NumericalError when nothing converges.
    """
    parts = [part for part in parts if len(part.S)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    U, S, V = (torch.cat([getattr(part, name) for part in parts], dim=-1) for name in ("U", "S", "V"))
    return Triplets(_whitened(U), S, _whitened(V))


def _whitened(X: Tensor) -> Tensor:
    """X (X^T X)^{-1/2} in X's dtype."""
    values, Q = _eigenpairs(symmetric(gram(X, torch.float64)))
    kept = values > DEPENDENT * DEPENDENT * values[-1]
    values, Q = values[kept], Q[:, kept]
    return times64(X, Q / values.sqrt() @ Q.mT)


def _eigenpairs(G: Tensor) -> tuple[Tensor, Tensor]:
    """Of a symmetric positive semidefinite matrix, ascending."""
    try:
        values, Q = torch.linalg.eigh(G)
    except LinAlgError:
        _, S, Vh = svd(G)
        return S.flip(0), Vh.mT.flip(1)
    return values, Q
