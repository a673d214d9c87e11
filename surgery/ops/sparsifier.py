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
piece, or in new. It depends on magnitudes alone. NaN stays NaN, so that a broken checkpoint is found whatever is
dropped."""

Choice = Callable[["Tensor", int], "Tensor"]
"""Of a piece of a tensor, and the offset of its first element, 1 for the entries to keep and 0 for the others; int8."""


def everything(d: Tensor, first: int) -> Tensor:  # noqa: ARG001 - as every sparsifier
    """Drops nothing."""
    return d


def nothing(d: Tensor, first: int) -> Tensor:  # noqa: ARG001 - as every sparsifier
    """Drops everything."""
    return d * 0


def keeping(choose: Choice) -> Sparsifier:
    """Keeps what is chosen."""
    return lambda d, first: d.mul_(choose(d, first).float())  # from int8: 3 times as fast as from bool


def noted(choose: Choice) -> Choice:
    """The same, in one bit for each entry, so that nothing is chosen when a piece is asked for again."""
    notes: dict[int, np.ndarray] = {}

    def again(d: Tensor, first: int) -> Tensor:
        if first not in notes:
            chosen = choose(d, first)
            notes[first] = np.packbits(chosen.cpu().numpy())
            return chosen
        chosen = torch.from_numpy(np.unpackbits(notes[first], count=d.numel()).view(np.int8))
        return chosen.to(d.device).view(d.shape)

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
            size = v.abs_()
            before[i] += float(size.sum())
            after[i] += float(sparsify(size, piece.first).sum())
    return [full / left if left else 1.0 for full, left in zip(before, after, strict=True)]
