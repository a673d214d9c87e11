"""Tensors of a checkpoint as the arithmetic sees them: read through one buffer, in float32 or better."""

from __future__ import annotations

from math import prod

import torch

from surgery.header import TensorInfo
from surgery.reader import Reader


class Operand:
    """One tensor, and the two buffers through which its pieces of up to so many elements pass.

    One is as stored, the other as computed with: float32, or float64 with `double`, on `device`.
    """

    def __init__(self, info: TensorInfo, reader: Reader, elements: int, device: torch.device, *, double: bool) -> None:
        self._info = info
        self._reader = reader
        self._stored = torch.empty(elements, dtype=info.dtype.torch)
        self._working = torch.empty(elements, dtype=torch.float64 if double else torch.float32, device=device)

    def load(self, first: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The piece that begins at element `first`; valid until the next one is loaded."""
        stored = self._stored[: prod(shape)]
        working = self._working[: prod(shape)]
        self._reader.read_into(self._info, as_bytes(stored), first * stored.element_size())
        return working.copy_(stored).view(shape)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data
