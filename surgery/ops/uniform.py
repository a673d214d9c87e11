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

PER_COUNT = 8  # numbers of 32 bits that Philox 4x64 makes of one value of its counter
KEY_BYTES = 16


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
        counter, skipped = divmod(first, PER_COUNT)
        count = prod(shape)
        philox = np.random.Philox(key=self._key, counter=counter)
        raw = philox.random_raw((skipped + count + 1) // 2).view(np.int32)[skipped : skipped + count]
        bits = torch.from_numpy(raw).to(device)
        return (bits & 0xFFFFFF).float().mul_(2.0**-24).view(*shape)
