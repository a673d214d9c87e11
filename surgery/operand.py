"""Tensors of a checkpoint as the arithmetic sees them: read through one buffer, in float32 or better, with adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch

from surgery.adapters.terms import Adapted, LowRank, Shift, rows_at_a_time
from surgery.header import TensorInfo
from surgery.reader import Reader
from surgery.row_map import MEAN, RowMap


class Operand:
    """One tensor, and the two buffers through which its pieces of up to so many elements pass.

    One is as stored, the other as computed with: float32, or float64 with `double`, on `device`. What adapters add is
    in it already.
    """

    def __init__(self, info: TensorInfo, reader: Reader, elements: int, device: torch.device, *, double: bool) -> None:
        self._info = info.stored
        self._reader = reader
        self._stored = torch.empty(elements, dtype=self._info.dtype.torch)
        self._working = torch.empty(elements, dtype=torch.float64 if double else torch.float32, device=device)
        adapted = info.adapted if info.adapted is not None and info.adapted.terms else None
        self._added = None if adapted is None else _Added(info, adapted, reader, self._working)

    def load(self, first: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The piece that begins at element `first`; valid until the next one is loaded."""
        stored = self._stored[: prod(shape)]
        working = self._working[: prod(shape)]
        self._reader.read_into(self._info, as_bytes(stored), first * stored.element_size())
        working.copy_(stored)
        if self._added is not None:
            self._added.add_to(working, first)
        return working.view(shape)


class _Added:
    """What adapters add to a tensor, made in blocks of whole rows; the last one is kept, as pieces end within rows."""

    def __init__(self, info: TensorInfo, adapted: Adapted, reader: Reader, like: torch.Tensor) -> None:
        def whole(factor: TensorInfo) -> torch.Tensor:
            loaded = Operand(factor, reader, factor.elements, like.device, double=like.dtype == torch.float64)
            return loaded.load(0, factor.shape)

        self._shifts = [(whole(term.vector), term.scale) for term in adapted.terms if isinstance(term, Shift)]
        self._products = []
        for term in adapted.terms:
            if isinstance(term, LowRank):
                left, right = whole(term.B), whole(term.A)
                if term.transposed:
                    left, right = right.mT.contiguous(), left.mT.contiguous()
                self._products.append((left, right, term.scale))
        self._rows, self._columns = (info.shape[0], info.shape[1]) if self._products else (1, info.elements)
        self._step = rows_at_a_time((self._rows, self._columns))
        self._block = like.new_empty(self._step * self._columns if self._products else 0)
        self._made = -1  # the number of the block that is in it

    def add_to(self, piece: torch.Tensor, first: int) -> None:
        """Add to a flat piece what belongs to its elements, from `first` on."""
        for vector, scale in self._shifts:
            piece.add_(vector[first : first + len(piece)], alpha=scale)
        size, end = self._step * self._columns, first + len(piece)
        for number in range(first // size, -(-end // size)) if self._products and size else ():
            start = number * size
            block = self._make(number)
            low, high = max(first, start), min(end, start + len(block))
            piece[low - first : high - first].add_(block[low - start : high - start])

    def _make(self, number: int) -> torch.Tensor:
        """A block of the sum of products, flat."""
        start = number * self._step
        stop = min(start + self._step, self._rows)
        block = self._block[: (stop - start) * self._columns]
        if number != self._made:
            product = block.view(stop - start, self._columns)
            for i, (left, right, scale) in enumerate(self._products):
                product.addmm_(left[start:stop], right, beta=min(i, 1), alpha=scale)
            self._made = number
        return block


class GatheredOperand:
    """A tensor whose rows are rows of several tensors, and the buffers through which its pieces pass.

    As `Operand`, for pieces that may begin and end within a row; what lies in one run of rows is read in one go. There
    is a buffer for each dtype of the parts. Rows that lie scattered are read one by one: reading what lies between
    them, too, would take as many bytes again for each piece of a shuffled vocabulary as the whole has. Where rows are
    the mean of the others, that is taken when it is made.
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
        self._mean = self._taken_mean(elements) if rows.means else None

    def load(self, first: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The piece that begins at element `first`; valid until the next one is loaded."""
        working = self._working[: prod(shape)]
        main = self._parts[0][0].dtype.name
        others, made = [], []
        for part, *places in self._runs(first, first + len(working)):
            spans = zip(*(each.tolist() for each in places), strict=True)
            if part < 0:
                made += [(begin, end, part) for begin, end, _ in spans]
                continue
            info, reader = self._parts[part]
            stored = self._stored[info.dtype.name]
            memory, size = as_bytes(stored), stored.element_size()
            for begin, end, offset in spans:
                reader.read_into(info, memory[begin * size : end * size], offset * size)
                if info.dtype.name != main:
                    others.append((stored, begin, end))
        working.copy_(self._stored[main][: len(working)])  # in one go, with what is not of this dtype
        for stored, begin, end in others:
            working[begin:end].copy_(stored[begin:end])
        for begin, end, part in made:
            working[begin:end] = self._means(first + begin, end - begin) if part == MEAN else 0.0
        return working.view(shape)

    def _means(self, first: int, count: int) -> torch.Tensor:
        """So many elements of rows that are all the mean, from element `first` of the tensor on."""
        assert self._mean is not None
        left = first % self._columns
        return self._mean.repeat(-(-(left + count) // self._columns))[left : left + count]

    def _taken_mean(self, elements: int) -> torch.Tensor:
        """The mean of the rows that are not MEAN, summed in float64, in pieces of up to so many elements."""
        count = self._rows.length - self._rows.means
        total = torch.zeros(self._columns, dtype=torch.float64, device=self._working.device)
        most, width = max(1, elements // self._columns), min(elements, self._columns)
        for first in range(0, count, most):
            for left in range(0, self._columns, width):  # more than one only where a row is longer than a piece
                shape = min(most, count - first), min(width, self._columns - left)
                total[left : left + width] += self.load(first * self._columns + left, shape).double().sum(dim=0)
        return (total / count).to(self._working.dtype)

    def _runs(self, first: int, stop: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """What a piece consists of: of each part, from where to where in the piece, and from which element of its own.

        In arrays, as a vocabulary in another order has a run for every row.
        """
        columns = self._columns
        if first == stop:
            return
        rows, parts, rows_there, counts = self._rows.runs(first // columns, -(-stop // columns))
        begin, end = np.maximum(rows * columns, first), np.minimum((rows + counts) * columns, stop)
        offset = (rows_there - rows) * columns + begin
        for part in np.unique(parts).tolist():
            own = parts == part
            yield part, begin[own] - first, end[own] - first, offset[own]


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data
