"""Edits that put the triplets of one matrix into another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.triplets import Triplets


def restore(W: Tensor, replaced: Triplets, restored: Triplets, values: Tensor) -> Tensor:
    """W' = W - U diag(S) V^T + U_b diag(S*) V_b^T, of W's shape, dtype and device.

    `replaced` are triplets (U, S, V) of W, `restored` as many of b, `values` S*. This equals the sum over all indices
    with the replaced triplets exchanged, and never needs the others. W' does not have the singular values S*, as the
    vectors of b are not orthogonal to those of W that stay (see `rotation`).
    """
    out = W.clone()
    out.addmm_(replaced.times(replaced.S), replaced.V.mT, alpha=-1)
    return out.addmm_(restored.times(values), restored.V.mT)


def compose(triplets: Triplets, values: Tensor) -> Tensor:
    """U diag(values) V^T: the directions of one matrix with other values; also the truncation to fewer triplets."""
    return triplets.times(values) @ triplets.V.mT


def flat(triplets: Triplets) -> Tensor:
    """s U V^T, s the mean of the values: 0 without any."""
    mean = float(triplets.S.mean()) if len(triplets.S) else 0.0
    return (triplets.U @ triplets.V.mT).mul_(mean)
