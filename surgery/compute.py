"""Makes the tensors of a job, piece by piece: read once, apply the steps of each output, cast once, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

import torch
from blake3 import blake3

from surgery.crew import Stopped
from surgery.dtypes import DType
from surgery.errors import NumericalError
from surgery.header import TensorInfo
from surgery.jobs import Input, Job, Part
from surgery.operand import Operand, as_bytes
from surgery.plan import PIECE_ELEMENTS, TensorPlan
from surgery.reader import Reader
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.shared import Shared
from surgery.writer import Writer

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
    needed = [each for each in job.inputs if any(each in part.inputs for part in parts)]
    elements = prod(job.piece_shape)
    operands = [Operand(each.info, readers[each.model], elements, device, double=job.double) for each in needed]
    for first, shape in _pieces(job):
        if stopping():
            raise Stopped
        pieces = {each: operand.load(first, shape) for each, operand in zip(needed, operands, strict=True)}
        shared = Shared(decomposer, [(piece, job.sizes.get(each)) for each, piece in pieces.items()])
        for each in making:
            if stopping():
                raise Stopped
            try:
                each.add(pieces, shared)
            except NumericalError as error:
                if len(writers) == 1:
                    raise
                raise NumericalError(f"`{each.out}`: {error}") from error
            if each.left == 0:
                yield each.part, each.hasher.hexdigest()


def _copy(part: Part, readers: Sequence[Reader], writer: Writer) -> str:
    slot, (source,) = part.tensor.slot, part.inputs
    writer.copy(slot, readers[source.model].fd(source.info.file), source.info.start)
    return writer.digest(slot)


def _pieces(job: Job) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Offset (in elements) and shape of each unit of work. Fixed by the plans, so that results are reproducible."""
    total, shape = prod(job.parts[0].tensor.slot.shape), job.piece_shape
    for first in range(0, max(total, 1), max(prod(shape), 1)):  # of an empty tensor, one empty piece
        yield first, shape if len(shape) == 2 else (min(shape[0], total - first),)


class _Making:
    """A part on its way; `left` is the number of its bytes that are still to come."""

    def __init__(self, part: Part, writer: Writer) -> None:
        self.part = part
        self.out = writer.out
        self.hasher = blake3()
        self.left = part.tensor.slot.nbytes
        self._writer = writer

    def add(self, pieces: Mapping[Input, torch.Tensor], decomposer: Decomposer) -> None:
        """Make the next piece; of a matrix on which no step works as such, in the runs of elements of any tensor."""
        inputs = [pieces[each] for each in self.part.inputs]
        if self.part.tensor.matrices:
            self._add(inputs, decomposer)
            return
        flat = [piece.view(-1) for piece in inputs]
        for first in range(0, len(flat[0]), PIECE_ELEMENTS):
            self._add([piece[first : first + PIECE_ELEMENTS] for piece in flat], decomposer)

    def _add(self, inputs: list[torch.Tensor], decomposer: Decomposer) -> None:
        slot = self.part.tensor.slot
        result = _apply(self.part, inputs, decomposer)
        stored = _stored(result, slot, self.part.tensor)
        self._writer.write(slot, slot.nbytes - self.left, stored)
        self.hasher.update(stored)
        self.left -= stored.nbytes


def _apply(part: Part, inputs: list[torch.Tensor], decomposer: Decomposer) -> torch.Tensor:
    """The steps, in order. A first step that ignores the running tensor is given another of the same kind."""
    tensor = part.tensor
    sources = {source.role: piece for source, piece in zip(tensor.inputs, inputs, strict=True)}
    running = inputs[0]
    if tensor.base is not None:
        sources = {source.role: piece for source, piece in zip(tensor.sources, inputs[1:], strict=True)}
    try:
        for op in part.ops:
            running = op.apply(running, sources, decomposer)
    except NumericalError as error:
        files = ", ".join(f"`{source.info.file}` of `{source.role}`" for source in tensor.inputs)
        raise NumericalError(f"`{tensor.slot.name}` ({files}): {error}") from error
    return running


def _stored(result: torch.Tensor, slot: TensorInfo, tensor: TensorPlan) -> memoryview:
    """The result in the output's dtype, as bytes. Raises NumericalError when it is not finite there."""
    stored = result.to(device="cpu", dtype=slot.dtype.torch).contiguous()
    # |x| of every element is at most the root of x . x, one pass of BLAS instead of a temporary for `isfinite`.
    flat = result.reshape(-1)
    if not flat.dot(flat) <= _SAFE_SQUARES[slot.dtype.name] and not stored.isfinite().all():
        overflow = bool(result.isfinite().all())
        if overflow or tensor.action == "compute":  # what was infinite before a cast (a mask) stays so
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
        f"or the sum overflows; leave the tensor out of `select`, or take a sound checkpoint"
    )
