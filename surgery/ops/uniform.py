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
FLOAT_BITS = 24  # as many of them as float32 holds
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

    def at(self, first: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """u of the elements from the offset `first` on, rounded down to a multiple of 2^-24; float32.

        Made on the CPU, so alike on every device.
        """
        leading = (self._drawn(first, shape) >> (BITS - FLOAT_BITS)).view(np.int32)  # numpy converts these faster
        return torch.from_numpy(leading).to(device).float().mul_(2.0**-FLOAT_BITS)

    def below(self, probability: float, first: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """1 where u < `probability`, below 1, and 0 elsewhere; float32."""
        mask = self._drawn(first, shape) < np.uint32(min(round(probability * 2**BITS), 2**BITS - 1))
        return torch.from_numpy(mask.view(np.int8)).to(device).float()  # from int8: 3 times as fast as from bool

    def _drawn(self, first: int, shape: Sequence[int]) -> np.ndarray:
        """The bits of u, uint32, in memory of their own."""
        steps, skipped = divmod(first, PER_STEP)
        count = skipped + prod(shape)
        generator = np.random.PCG64DXSM(self._key).advance(steps)
        return generator.random_raw(-(-count // PER_STEP)).view(np.uint32)[skipped:count].reshape(shape)
