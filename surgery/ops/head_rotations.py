"""The rotations that bring the heads of one attention nearest to those of another, and their use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from surgery.errors import NumericalError
from surgery.partners import OUTPUT_ROWS
from surgery.spectral.procrustes import procrustes

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.heads import Projection
    from surgery.ops.whole import Attention


def rotations(attention: Attention) -> list[Tensor | None]:
    """R (d x d, float64) of each key/value head, or None where its weights are those of the other model already.

    Everything is computed from what is read, in float64 and in blocks that depend on the shapes alone: so all parts of
    the attention, each edited on its own, turn by the same R. Raises NumericalError for NaN and infinity.
    """
    heads = attention.heads
    d, count = heads.head_dim, heads.key_values
    products: list[Tensor | None] = [None] * count
    equal = [True] * count

    def add(head: int, X: Tensor, Y: Tensor) -> None:
        """X Y^T of some columns of [V, b] or rows of O^T (d x any)."""
        product = products[head]
        products[head] = X @ Y.mT if product is None else product.addmm_(X, Y.mT)
        equal[head] = equal[head] and torch.equal(X, Y)

    for head, (V, other) in enumerate(attention.blocks("value", d)):
        add(head, V, other)
    if heads.bias is not None:
        for b, other in attention.blocks("bias", 1):
            for head in range(count):
                rows = slice(head * d, (head + 1) * d)
                add(head, b[:, rows].mT, other[:, rows].mT)
    for O, other in attention.blocks("output", OUTPUT_ROWS):  # noqa: E741 - as in the formula
        for query in range(heads.queries):
            columns = slice(query * d, (query + 1) * d)
            add(query // (heads.queries // count), O[:, columns].mT, other[:, columns].mT)
    return [None if same else _rotation(M, head) for head, (M, same) in enumerate(zip(products, equal, strict=True))]


def turned(W: Tensor, rotations: list[Tensor | None], part: Projection) -> Tensor:
    """The part in the new gauge: R^T V of each key/value head, O R of each of its query heads, and b R of the bias as
    a row, which is R^T b.
    """
    W = W.clone()
    for head, R in enumerate(rotations):
        if R is None:
            continue
        R = R.to(W.dtype)
        size = W.shape[0 if part == "value" else 1] // len(rotations)
        share = slice(head * size, (head + 1) * size)
        if part == "value":
            W[share] = R.mT @ W[share]
        else:
            W[:, share] = (W[:, share].reshape(-1, len(R)) @ R).view(len(W), size)
    return W


def _rotation(M: Tensor | None, head: int) -> Tensor:
    assert M is not None
    if not M.isfinite().all():
        raise NumericalError(
            f"the products of key/value head {head} of the two models are not finite: an input holds NaN or infinity, "
            f"or values too large; leave this module out with `exclude`, or take a sound checkpoint"
        )
    return procrustes(M)
