"""The k-th largest magnitude of a whole tensor, exactly, without a sort and without the tensor in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.measures import Vectors
    from surgery.ops.whole import Whole

# The 31 bits of |x| in float32, sign cut off, order as |x| does. A radix selection takes them in two parts: a pass over
# the tensor counts the upper one, another the lower one among those whose upper one is that of the k-th.
LOWER_BITS = 15
UPPER = 1 << (31 - LOWER_BITS)
LOWER = 1 << LOWER_BITS


class Magnitudes:
    """The magnitudes of the tensors that `vectors` gives of the pieces of a whole, in float32, as counts.

    One pass over the pieces makes it, one more each `largest`.
    """

    def __init__(self, whole: Whole, vectors: Vectors) -> None:
        self._whole = whole
        self._vectors = vectors
        self._upper: list[np.ndarray] = []
        for piece in whole.pieces():
            for i, v in enumerate(vectors(piece)):
                if i == len(self._upper):
                    self._upper.append(np.zeros(UPPER, dtype=np.int64))
                self._upper[i] += _counts(bits_of_magnitude(v).bitwise_right_shift_(LOWER_BITS), UPPER)

    @property
    def nonzero(self) -> list[int]:
        """How many of each tensor are not 0; what is below 2^-134, where float32 ends, counts as 0."""
        return [int(upper[1:].sum()) for upper in self._upper]

    def largest(self, ranks: Sequence[Sequence[int]]) -> list[list[float]]:
        """The k-th largest magnitude for each rank k, counted from 1, that `ranks` names for each of the tensors.

        Equal ones count each. Without ranks there is no pass.
        """
        places = [[_place(upper, k) for k in wanted] for upper, wanted in zip(self._upper, ranks, strict=True)]
        lower = {(i, bin_): np.zeros(LOWER, dtype=np.int64) for i, found in enumerate(places) for bin_, _ in found}
        for piece in self._whole.pieces() if lower else ():
            vectors = self._vectors(piece)
            for i, measured in groupby(lower, key=itemgetter(0)):
                bits = bits_of_magnitude(vectors[i])
                upper = bits >> LOWER_BITS
                for key in measured:
                    inside = bits[upper == key[1]]
                    lower[key] += _counts(inside & (LOWER - 1), LOWER)
        return [
            [_magnitude(bin_ << LOWER_BITS | _place(lower[i, bin_], left)[0]) for bin_, left in found]
            for i, found in enumerate(places)
        ]


def magnitude(v: Tensor) -> Tensor:
    """|v| in float32, as ranks are taken."""
    return v.abs().float()


def between(d: Tensor, low: float, high: float = math.inf) -> Tensor:
    """d where low <= |d| <= high, compared in float32, and 0 elsewhere; d itself where everything is between.

    NaN stays, and what is infinite and above `high` becomes NaN.
    """
    if d.dtype != torch.float32:
        size = magnitude(d)
        return d * ((size >= low) & (size <= high))
    # `hardshrink` keeps what is larger than a bound, in a tenth of the time that a mask and `where` take.
    if low > 0:
        d = torch.nn.functional.hardshrink(d, float(np.nextafter(np.float32(low), np.float32(0))))
    return d if high == math.inf else d - torch.nn.functional.hardshrink(d, high)


def bits_of_magnitude(v: Tensor) -> Tensor:
    """The bits of |v| in float32, as int32, in new memory: they order as |v| does."""
    return magnitude(v).view(torch.int32)


def _magnitude(bits: int) -> float:
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


def _counts(values: Tensor, size: int) -> np.ndarray:
    return torch.bincount(values.view(-1), minlength=size).cpu().numpy()


def _place(counts: np.ndarray, k: int) -> tuple[int, int]:
    """The bin that holds the k-th from above, and which of this bin's it is."""
    from_above = np.cumsum(counts[::-1])
    i = int(np.searchsorted(from_above, k))
    return len(counts) - 1 - i, k - int(from_above[i - 1] if i else 0)
