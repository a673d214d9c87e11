"""Makes one output tensor, piece by piece: read, apply the steps, cast once, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

import torch
from blake3 import blake3

from surgery.crew import Stopped
from surgery.dtypes import DType
from surgery.errors import NumericalError
from surgery.header import TensorInfo
from surgery.operand import Operand, as_bytes
from surgery.ops.base import Op
from surgery.plan import PIECE_ELEMENTS, Plan, TensorPlan
from surgery.reader import Reader
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import Triplets
from surgery.writer import Writer

# What x . x may be for every element to fit into a dtype, and for the product itself to be finite in float32.
_SAFE_SQUARES = {"F16": 4e9, "BF16": 1e38, "F32": 1e38, "F64": 1e38}


def make_tensor(
    plan: Plan,
    tensor: TensorPlan,
    readers: Mapping[str, Reader],
    writer: Writer,
    device: torch.device,
    stopping: Callable[[], bool],
    decomposer: Decomposer,
) -> str:
    """Make a tensor in its place in the output and return its BLAKE3 digest.

    Raises NumericalError, with file and tensor named, for NaN or infinity in an operand or in the result;
    CheckpointError and OutputError from reading and writing; Stopped when `stopping` says so between two pieces.
    """
    slot = tensor.slot
    if tensor.action == "copy":
        assert tensor.base is not None
        info = tensor.base.info
        writer.copy(slot, readers[tensor.base.role].fd(info.file), info.start)
        return writer.digest(slot)
    elements = prod(tensor.piece_shape)
    double = any(source.info.dtype.name == "F64" for source in tensor.inputs)
    operands = [Operand(source.info, readers[source.role], elements, device, double=double) for source in tensor.inputs]
    ops = plan.ops(tensor)
    hasher = blake3()
    offset = 0
    for first, shape in _pieces(tensor):
        if stopping():
            raise Stopped
        result = _apply(tensor, ops, [operand.load(first, shape) for operand in operands], decomposer)
        stored = _stored(result, slot, tensor)
        writer.write(slot, offset, stored)
        hasher.update(stored)
        offset += stored.nbytes
        del result, stored  # the next piece then takes the same memory, while it is in the cache
    return hasher.hexdigest()


def _pieces(tensor: TensorPlan) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Offset (in elements) and shape of each unit of work. Fixed by the plan, so that results are reproducible."""
    total = prod(tensor.slot.shape)
    if tensor.matrices:
        rows, columns = tensor.slot.shape[-2:]
        for first in range(0, total, rows * columns):
            yield first, (rows, columns)
    else:
        for first in range(0, total, PIECE_ELEMENTS):
            yield first, (min(PIECE_ELEMENTS, total - first),)


class _OfInputs(Decomposer):
    """Asks `decomposer` for decompositions of the inputs; computes those of what a step made of them.

    An input will be met again, by another edit or a comparison; an intermediate result hardly ever.
    """

    def __init__(self, decomposer: Decomposer, inputs: Sequence[torch.Tensor]) -> None:
        self._decomposer = decomposer
        self._inputs = inputs

    def triplets(self, W: torch.Tensor, head: int, tail: int = 0) -> Triplets:
        return self._for(W).triplets(W, head, tail)

    def values(self, W: torch.Tensor) -> torch.Tensor:
        return self._for(W).values(W)

    def _for(self, W: torch.Tensor) -> Decomposer:
        return self._decomposer if any(W is known for known in self._inputs) else Decomposer()


def _apply(tensor: TensorPlan, ops: tuple[Op, ...], pieces: list[torch.Tensor], decomposer: Decomposer) -> torch.Tensor:
    """The steps, in order. A first step that ignores the running tensor is given another of the same kind."""
    sources = {source.role: piece for source, piece in zip(tensor.inputs, pieces, strict=True)}
    running = pieces[0]
    if tensor.base is not None:
        sources = {source.role: piece for source, piece in zip(tensor.sources, pieces[1:], strict=True)}
    decomposer = _OfInputs(decomposer, pieces)
    try:
        for op in ops:
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
