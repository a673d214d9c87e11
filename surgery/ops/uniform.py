"""Random numbers that depend on what they are for, not on when, where, and in which pieces they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from blake3 import blake3

if TYPE_CHECKING:
    from torch import Tensor

PER_COUNT = 8  # numbers of 32 bits that Philox 4x64 makes of one value of its counter
KEY_BYTES = 16
BITS = 0xFFFFFF  # of a number: as many as float32 holds


class Uniform:
    """Independent numbers for the elements of a tensor, uniform on the multiples of 2^-24 in [0, 1).

    They depend on `seed`, `role`, `name`, and the offset of the element alone. A counter-based generator needs no state
    from the elements before: Philox 4x64 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3), its key
    the BLAKE3 hash of what they are for, its counter an eighth of the offset.
    """

    def __init__(self, seed: int, role: str, name: str) -> None:
        digest = blake3(f"{seed}\0{role}\0{name}".encode()).digest(length=KEY_BYTES)
        self._key = int.from_bytes(digest, "little")

    def at(self, first: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Those of the elements from the offset `first` on, float32. Made on the CPU, so alike on every device."""
        return self._bits(first, shape).bitwise_and_(BITS).to(device).float().mul_(1 / (BITS + 1))

    def below(self, probability: float, first: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """1 where the number is below `probability`, and 0 elsewhere, float32.

        It is the sign of a difference of integers: torch is a sixth slower at comparing.
        """
        bound = math.ceil(probability * (BITS + 1))
        below = self._bits(first, shape).bitwise_and_(BITS).sub_(bound).bitwise_right_shift_(31)
        return below.neg_().to(device).float()

    def _bits(self, first: int, shape: Sequence[int]) -> Tensor:
        """Random bits, int32, in memory of their own."""
        counter, skipped = divmod(first, PER_COUNT)
        count = prod(shape)
        philox = np.random.Philox(key=self._key, counter=counter)
        raw = philox.random_raw((skipped + count + 1) // 2).view(np.int32)[skipped : skipped + count]
        return torch.from_numpy(raw).view(*shape)
