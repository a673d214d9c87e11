"""Tensors of a checkpoint as the arithmetic sees them: read through one buffer, in float32 or better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch

from surgery.header import TensorInfo
from surgery.reader import Reader
from surgery.row_map import RowMap


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


class GatheredOperand:
    """A tensor whose rows are rows of several tensors, and the buffers through which its pieces pass.

    As `Operand`, for pieces that may begin and end within a row; what lies in one run of rows is read in one go. There
    is a buffer for each dtype of the parts.
    """

    def __init__(
        self,
        parts: Sequence[tuple[TensorInfo, Reader]],
        rows: RowMap,
        elements: int,
        device: torch.device,
        *,
        double: bool,
    ) -> None:
        self._parts = parts
        self._rows = rows
        self._columns = prod(parts[0][0].shape[1:])
        self._stored = {info.dtype.name: torch.empty(elements, dtype=info.dtype.torch) for info, _ in parts}
        self._working = torch.empty(elements, dtype=torch.float64 if double else torch.float32, device=device)

    def load(self, first: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The piece that begins at element `first`; valid until the next one is loaded."""
        working = self._working[: prod(shape)]
        for begin, end, info, reader, offset in self._runs(first, first + len(working)):
            stored = self._stored[info.dtype.name][begin:end]
            reader.read_into(info, as_bytes(stored), offset * stored.element_size())
            if len(self._stored) > 1:
                working[begin:end].copy_(stored)
        if len(self._stored) == 1:  # one copy for all runs
            (stored,) = self._stored.values()
            working.copy_(stored[: len(working)])
        return working.view(shape)

    def _runs(self, first: int, stop: int) -> Iterator[tuple[int, int, TensorInfo, Reader, int]]:
        """What a piece consists of: from where to where in it, of which tensor, from which element there."""
        if first == stop:
            return
        for row, part, source_row, count in self._rows.runs(first // self._columns, -(-stop // self._columns)):
            begin, end = max(first, row * self._columns), min(stop, (row + count) * self._columns)
            offset = source_row * self._columns + begin - row * self._columns
            yield begin - first, end - first, *self._parts[part], offset


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data
