"""What makes a task vector sparse, piece by piece, and the scale that makes up for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.measures import Vectors
    from surgery.ops.whole import Whole

Sparsifier = Callable[["Tensor", int], "Tensor"]
"""Of a piece of a tensor, and the offset of its first element, the same with some entries 0: in the memory of the
piece, or in new. NaN stays NaN, so that a broken checkpoint is found whatever is dropped."""


def everything(d: Tensor, first: int) -> Tensor:  # noqa: ARG001 - as every sparsifier
    """Drops nothing."""
    return d


def nothing(d: Tensor, first: int) -> Tensor:  # noqa: ARG001 - as every sparsifier
    """Drops everything."""
    return d * 0


def remembering(sparsify: Sparsifier) -> Sparsifier:
    """The same, for one whose choice takes longer than to note it: asked for a piece again it drops the same entries,
    as it keeps one bit for each.
    """
    if sparsify in (everything, nothing):
        return sparsify
    masks: dict[int, np.ndarray] = {}

    def again(d: Tensor, first: int) -> Tensor:
        if first not in masks:
            sparse = sparsify(d, first)
            masks[first] = np.packbits((sparse != 0).cpu().numpy())
            return sparse
        mask = np.unpackbits(masks[first], count=d.numel()).view(np.int8)
        return d.mul_(torch.from_numpy(mask).to(d.device).view(d.shape))

    return again


def rescaling(whole: Whole, vectors: Vectors, sparsifiers: Sequence[Sparsifier]) -> list[float]:
    """For each of the tensors that `vectors` gives, |v|_1 / |s(v)|_1 over the whole of it: with this factor the sparse
    tensor s(v) has the L1 norm of v. 1 where nothing is left.

    One pass. Sums within a piece are in the dtype of the arithmetic, those of pieces in float64: the relative error
    is about 1e-6.
    """
    before, after = [0.0] * len(sparsifiers), [0.0] * len(sparsifiers)
    for piece in whole.pieces():
        for i, (v, sparsify) in enumerate(zip(vectors(piece), sparsifiers, strict=True)):
            before[i] += float(v.abs().sum())
            after[i] += float(sparsify(v, piece.first).abs().sum())
    return [full / left if left else 1.0 for full, left in zip(before, after, strict=True)]
