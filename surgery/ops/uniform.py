"""Random numbers that depend on what they are for, not on when, where, and in which pieces they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from blake3 import blake3

if TYPE_CHECKING:
    from torch import Tensor

BITS = 32  # of a number
HALF = 1 << (BITS - 1)
PER_STEP = 2  # numbers that the generator makes of one of its steps
KEY_BYTES = 16


class Uniform:
    """Independent numbers u for the elements of a tensor, uniform on the multiples of 2^-32 in [0, 1).

    They depend on `seed`, `role`, `name`, and the offset of the element alone. The generator, PCG64 DXSM (O'Neill 2014,
    PCG: a family of simple fast space-efficient statistically good algorithms for random number generation), is seeded
    with the BLAKE3 hash of what they are for, and goes to any offset without the steps before it; it takes half the
    time of Philox, which is made for that.
    """

    def __init__(self, seed: int, role: str, name: str) -> None:
        digest = blake3(f"{seed}\0{role}\0{name}".encode()).digest(length=KEY_BYTES)
        self._key = int.from_bytes(digest, "little")

    def bits(self, first: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """2^32 (u - 1/2) of the elements from the offset `first` on; int32, in new memory.

        Made on the CPU, so alike on every device.
        """
        return torch.from_numpy(self._drawn(first, shape)).to(device)

    def below(self, probability: float, first: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """1 where u < `probability`, below 1, and 0 elsewhere; int8."""
        mask = self._drawn(first, shape) < np.int32(min(round((probability - 0.5) * 2**BITS), HALF - 1))
        return torch.from_numpy(mask.view(np.int8)).to(device)

    def _drawn(self, first: int, shape: Sequence[int]) -> np.ndarray:
        steps, skipped = divmod(first, PER_STEP)
        count = skipped + prod(shape)
        generator = np.random.PCG64DXSM(self._key).advance(steps)
        return generator.random_raw(-(-count // PER_STEP)).view(np.int32)[skipped:count].reshape(shape)
