"""Decompositions that several edits of the same matrices share.

The leading triplets of a matrix are a part of any larger decomposition of it, so edits that ask for different numbers
of them need one decomposition, the largest. What is taken from it differs from what a smaller one would have given by
the rounding errors of either, towards the better: the boundary of its subspace is farther away (see `triplets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import Triplets

Size = tuple[int, int]  # how many leading and trailing triplets; (0, 0): the singular values alone


class Shared(Decomposer):
    """Asks `decomposer` once for each input that has a size, for so much of it, and hands out the parts.

    The sizes are fixed beforehand: what an edit gets depends neither on which others ask, nor on their order. Inputs
    without a size are asked for as they come. What is no input, since a step made it, is computed and not kept: an
    input will be met again, by another edit or a comparison, an intermediate result hardly ever.
    """

    def __init__(self, decomposer: Decomposer, inputs: Sequence[tuple[Tensor, Size | None]]) -> None:
        self._decomposer = decomposer
        self._inputs = [_Input(W, size) for W, size in inputs]

    def triplets(self, W: Tensor, head: int, tail: int = 0) -> Triplets:
        known = self._known(W)
        if known is None:
            return super().triplets(W, head, tail)
        if known.size is None:
            return self._decomposer.triplets(W, head, tail)
        return _part(self._triplets(known, known.size), known.size, (head, tail))

    def values(self, W: Tensor) -> Tensor:
        known = self._known(W)
        if known is None:
            return super().values(W)
        if known.size == (min(W.shape), 0):
            return self._triplets(known, known.size).S
        if known.size is None:
            return self._decomposer.values(W)
        if known.values is None:
            known.values = self._decomposer.values(W)
        return known.values

    def _known(self, W: Tensor) -> _Input | None:
        return next((known for known in self._inputs if known.matrix is W), None)

    def _triplets(self, known: _Input, size: Size) -> Triplets:
        if known.triplets is None:
            known.triplets = self._decomposer.triplets(known.matrix, *size)
        return known.triplets


@dataclass(eq=False)
class _Input:
    matrix: Tensor
    size: Size | None
    triplets: Triplets | None = None
    values: Tensor | None = None


def _part(whole: Triplets, size: Size, asked: Size) -> Triplets:
    """The outermost triplets of a decomposition of this size, in memory of their own."""
    if asked == size:
        return whole
    (head, tail), count = asked, sum(size)
    assert head <= size[0]
    assert tail <= size[1] or size[1] == 0
    return Triplets(*(torch.cat([X[..., :head], X[..., count - tail :]], dim=-1) for X in (whole.U, whole.S, whole.V)))
