"""Makes the tensors of a job, piece by piece: read once, apply the steps of each output, cast once, write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod

import torch
from blake3 import blake3

from surgery.crew import Stopped
from surgery.dtypes import DType
from surgery.errors import NumericalError
from surgery.header import TensorInfo
from surgery.heads import Projection
from surgery.jobs import Input, Job, Part
from surgery.operand import GatheredOperand, Operand, as_bytes
from surgery.ops.whole import Attention, Edit, Piece, Whole
from surgery.plan import TensorPlan
from surgery.reader import Reader
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.shared import Shared
from surgery.writer import Writer

_Read = tuple[int, Mapping[Input, torch.Tensor], Decomposer]  # offset of the first element, pieces, decomposer

# What x . x may be for every element to fit into a dtype, and for the product itself to be finite in float32.
_SAFE_SQUARES = {"F16": 4e9, "BF16": 1e38, "F32": 1e38, "F64": 1e38}


def make_tensors(
    job: Job,
    parts: Sequence[Part],
    readers: Sequence[Reader],
    writers: Mapping[int, Writer],
    device: torch.device,
    stopping: Callable[[], bool],
    decomposer: Decomposer,
) -> Iterator[tuple[Part, str]]:
    """Make those `parts` of a job, each in its place in its output; yields each, once there, with its BLAKE3 digest.

    `readers` are by model, `writers` by output. Raises NumericalError, with file and tensor named, for NaN or infinity
    in an operand or in the result; CheckpointError and OutputError from reading and writing; Stopped when `stopping`
    says so between two pieces.
    """
    if job.copies:
        for part in parts:
            yield part, _copy(part, readers, writers[part.output])
        return
    making = [_Making(part, writers[part.output]) for part in parts]
    inputs = _Inputs(job, parts, readers, device, stopping, decomposer)
    for each in making:
        with _told(each, writers):
            attention = _attention(each.part, readers, device, stopping)
            each.prepare(partial(inputs.read, dict.fromkeys(each.part.inputs)), attention)
    for pieces in inputs.read(inputs.needed):
        for each in making:
            if stopping():
                raise Stopped
            with _told(each, writers):
                each.add(pieces)
            if each.left == 0:
                yield each.part, each.hasher.hexdigest()


class _Inputs:
    """What some parts of a job need, read piece by piece as often as it is asked for.

    A job of one piece, as that of a matrix, is read once: the piece stays, and with it what it is decomposed into.
    """

    def __init__(
        self,
        job: Job,
        parts: Sequence[Part],
        readers: Sequence[Reader],
        device: torch.device,
        stopping: Callable[[], bool],
        decomposer: Decomposer,
    ) -> None:
        self.needed = [each for each in job.inputs if any(each in part.inputs for part in parts)]
        elements = prod(job.piece_shape)
        self._operands = {each: _operand(each, readers, elements, device, double=job.double) for each in self.needed}
        self._places = list(_pieces(job))
        self._only: _Read | None = None
        self._sizes = job.sizes
        self._stopping = stopping
        self._decomposer = decomposer

    def read(self, wanted: Collection[Input]) -> Iterator[_Read]:
        """All pieces of these inputs, each valid until the next. Raises Stopped."""
        for first, shape in self._places:
            if self._stopping():
                raise Stopped
            if len(self._places) > 1:
                yield self._load(first, shape, wanted)
                continue
            if self._only is None:
                self._only = self._load(first, shape, self.needed)
            yield self._only

    def _load(self, first: int, shape: tuple[int, ...], wanted: Collection[Input]) -> _Read:
        pieces = {each: self._operands[each].load(first, shape) for each in wanted}
        sizes = [(piece, self._sizes.get(each)) for each, piece in pieces.items()]
        return first, pieces, Shared(self._decomposer, sizes)


@contextmanager
def _told(making: _Making, writers: Mapping[int, Writer]) -> Iterator[None]:
    """Where several outputs are made, say which one a NumericalError is about."""
    try:
        yield
    except NumericalError as error:
        if len(writers) == 1:
            raise
        raise NumericalError(f"`{making.out}`: {error}") from error


def _operand(
    given: Input, readers: Sequence[Reader], elements: int, device: torch.device, *, double: bool
) -> Operand | GatheredOperand:
    if given.rows is None:
        return Operand(given.info, readers[given.model], elements, device, double=double)
    parts = [(part.info, readers[part.model]) for part in given.parts]
    return GatheredOperand(parts, given.rows, elements, device, double=double)


def _attention(
    part: Part, readers: Sequence[Reader], device: torch.device, stopping: Callable[[], bool]
) -> Attention | None:
    """What the first operation reads of the module that the tensor is part of, if that is its kind."""
    partners = part.tensor.partners
    if partners is None:
        return None

    def blocks(of: Projection, rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        first = part.pairs[of][0].info
        count, columns = first.shape if len(first.shape) > 1 else (1, first.elements)
        rows = min(rows, count)
        running, other = (_operand(each, readers, rows * columns, device, double=True) for each in part.pairs[of])
        for row in range(0, count, rows):
            if stopping():
                raise Stopped
            shape = min(rows, count - row), columns
            yield running.load(row * columns, shape), other.load(row * columns, shape)

    return Attention(partners.heads, partners.part(part.tensor.slot.name), blocks)


def _copy(part: Part, readers: Sequence[Reader], writer: Writer) -> str:
    slot, (source,) = part.tensor.slot, part.inputs
    writer.copy(slot, readers[source.model].fd(source.info.file), source.info.start)
    return writer.digest(slot)


def _pieces(job: Job) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Offset (in elements) and shape of each unit of work. Fixed by the plans, so that results are reproducible."""
    total, (most, *columns) = prod(job.parts[0].tensor.slot.shape), job.piece_shape
    for first in range(0, max(total, 1), max(prod(job.piece_shape), 1)):  # of an empty tensor, one empty piece
        yield first, (min(most, (total - first) // max(prod(columns), 1)), *columns)


class _Making:
    """A part on its way; `left` is the number of its bytes that are still to come."""

    def __init__(self, part: Part, writer: Writer) -> None:
        self.part = part
        self.out = writer.out
        self.hasher = blake3()
        self.left = part.tensor.slot.nbytes
        self._writer = writer
        self._edits: list[Edit] = []
        self._kept_after = part.tensor.kept_after
        self._kept: dict[int, tuple[int, torch.Tensor]] = {}  # by first element, W after so many edits

    def prepare(self, read: Callable[[], Iterator[_Read]], attention: Attention | None) -> None:
        """Let each operation see the whole tensor, as those before it leave it, and the first its attention."""
        slot = self.part.tensor.slot
        for number, op in enumerate(self.part.ops):

            def pieces(before: Sequence[Edit] = tuple(self._edits[:number])) -> Iterator[Piece]:
                for piece in read():
                    for own in self._own(piece):
                        yield self._edited(own, before)

            with self._naming():
                whole = Whole(self.part.tensor.known_as or slot.name, slot.shape, pieces, None if number else attention)
                self._edits.append(op.prepare(whole))

    def add(self, read: _Read) -> None:
        """Make the next piece."""
        for piece in self._own(read):
            with self._naming():
                result = self._edited(piece, self._edits).W
            slot = self.part.tensor.slot
            stored = _stored(result, slot, self.part.tensor)
            self._writer.write(slot, slot.nbytes - self.left, stored)
            self.hasher.update(stored)
            self.left -= stored.nbytes

    def _own(self, read: _Read) -> Iterator[Piece]:
        """What was read, in the pieces of this tensor alone: of a matrix on which it does not work as such, runs."""
        first, pieces, decomposer = read
        inputs = [pieces[each] for each in self.part.inputs]
        tensor = self.part.tensor
        if tensor.matrices or not inputs[0].numel():
            yield self._piece(inputs, first, decomposer)
            return
        most, *columns = tensor.piece_shape
        flat = [piece.view(-1, *columns) for piece in inputs]
        for start in range(0, len(flat[0]), most):
            runs = [piece[start : start + most] for piece in flat]
            yield self._piece(runs, first + start * prod(columns), decomposer)

    def _piece(self, inputs: list[torch.Tensor], first: int, decomposer: Decomposer) -> Piece:
        """A first step that ignores the running tensor is given another of the same kind."""
        tensor = self.part.tensor
        sources = {source.role: piece for source, piece in zip(tensor.inputs, inputs, strict=True)}
        if tensor.base is not None:
            sources = {source.role: piece for source, piece in zip(tensor.sources, inputs[1:], strict=True)}
        return Piece(inputs[0], sources, first, decomposer)

    def _edited(self, piece: Piece, edits: Sequence[Edit]) -> Piece:
        """A piece as these edits leave it, from what is kept of it on."""
        done, W = self._kept.get(piece.first, (0, piece.W))
        piece = replace(piece, W=W)
        for number, edit in enumerate(edits[done:], done + 1):
            piece = replace(piece, W=edit(piece))
            if number in self._kept_after:
                self._kept.pop(piece.first, None)  # its memory becomes free before the next is taken
                self._kept[piece.first] = number, piece.W.clone()
        return piece

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name tensor and files in a NumericalError."""
        try:
            yield
        except NumericalError as error:
            tensor = self.part.tensor
            files = ", ".join(dict.fromkeys(f"`{s.info.file}` of `{s.role}`" for s in tensor.all_inputs))
            raise NumericalError(f"`{tensor.slot.name}` ({files}): {error}") from error


def _stored(result: torch.Tensor, slot: TensorInfo, tensor: TensorPlan) -> memoryview:
    """The result in the output's dtype, as bytes. Raises NumericalError when it is not finite there."""
    stored = result.to(device="cpu", dtype=slot.dtype.torch).contiguous()
    # |x| of every element is at most the root of x . x, one pass of BLAS instead of a temporary for `isfinite`.
    flat = result.reshape(-1)
    if not flat.dot(flat) <= _SAFE_SQUARES[slot.dtype.name] and not stored.isfinite().all():
        overflow = bool(result.isfinite().all())
        if overflow or tensor.action != "cast":  # what was infinite before a cast (a mask) stays so
            raise NumericalError(_not_finite(result, slot.dtype, tensor, overflow))
    return as_bytes(stored)


def _not_finite(result: torch.Tensor, dtype: DType, tensor: TensorPlan, overflow: bool) -> str:
    inputs = ", ".join(f"`{source.info.file}` of `{source.role}`" for source in tensor.inputs)
    if overflow:
        largest = result.abs().max().item()
        limit = torch.finfo(dtype.torch).max
        return (
            f"`{tensor.slot.name}` ({inputs}): the result reaches {largest:.3g}, {dtype.torch_name} holds up to "
            f"{limit:.3g}; choose a wider one: `--set output.dtype=float32`"
        )
    bad = int((~result.isfinite()).sum())
    return (
        f"`{tensor.slot.name}` ({inputs}): {bad} values of the result are NaN or infinite: an input holds such values, "
        f"or the sum overflows; leave the tensor out of `select`, or take a sound checkpoint, and add `--fresh`"
    )
