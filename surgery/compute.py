"""Makes one output tensor, piece by piece: read, apply the steps, cast once, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod

import torch
from blake3 import blake3

from surgery.dtypes import DType
from surgery.errors import NumericalError
from surgery.ops.base import Op
from surgery.plan import PIECE_ELEMENTS, Plan, Slot, Source, TensorPlan
from surgery.reader import Reader
from surgery.writer import Writer


class Stopped(Exception):
    """Another worker failed, or the user interrupted: the tensor at hand is left unfinished."""


def make_tensor(
    plan: Plan,
    tensor: TensorPlan,
    readers: Mapping[str, Reader],
    writer: Writer,
    device: torch.device,
    stopping: Callable[[], bool],
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
    ops = plan.ops(tensor)
    arithmetic = torch.float64 if any(s.info.dtype.name == "F64" for s in tensor.inputs) else torch.float32
    hasher = blake3()
    offset = 0
    for first, shape in _pieces(tensor):
        if stopping():
            raise Stopped
        loaded = {
            source.role if source is not tensor.base else None: _load(
                readers[source.role], source, first, shape, arithmetic, device
            )
            for source in tensor.inputs
        }
        result = _apply(tensor, ops, loaded)
        stored = _stored(result, slot, tensor)
        writer.write(slot, offset, stored)
        hasher.update(stored)
        offset += stored.nbytes
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


def _load(
    reader: Reader,
    source: Source,
    first: int,
    shape: tuple[int, ...],
    arithmetic: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """A piece of an input, in the dtype of the arithmetic."""
    dtype = source.info.dtype
    piece = torch.empty(shape, dtype=dtype.torch)
    reader.read_into(source.info, _bytes(piece), first * (dtype.bits // 8))
    return piece.to(device=device, dtype=arithmetic)


def _apply(tensor: TensorPlan, ops: tuple[Op, ...], loaded: dict[str | None, torch.Tensor]) -> torch.Tensor:
    """The steps, in order. A first step that ignores the running tensor is given another of the same kind."""
    running = loaded.pop(None) if tensor.base is not None else next(iter(loaded.values()))
    sources = {role: piece for role, piece in loaded.items() if role is not None}
    try:
        for op in ops:
            running = op.apply(running, sources)
    except NumericalError as error:
        files = ", ".join(f"`{source.info.file}` of `{source.role}`" for source in tensor.inputs)
        raise NumericalError(f"`{tensor.slot.name}` ({files}): {error}") from error
    return running


def _stored(result: torch.Tensor, slot: Slot, tensor: TensorPlan) -> memoryview:
    """The result in the output's dtype, as bytes. Raises NumericalError when it is not finite there."""
    stored = result.to(device="cpu", dtype=slot.dtype.torch).contiguous()
    # A sum is finite only if every term is; it is much cheaper than looking at each.
    if not stored.sum(dtype=torch.float32).isfinite() and not stored.isfinite().all():
        raise NumericalError(_not_finite(result, slot.dtype, tensor))
    return _bytes(stored)


def _not_finite(result: torch.Tensor, dtype: DType, tensor: TensorPlan) -> str:
    inputs = ", ".join(f"`{source.info.file}` of `{source.role}`" for source in tensor.inputs)
    if result.isfinite().all():
        largest = result.abs().max().item()
        limit = torch.finfo(dtype.torch).max
        return (
            f"`{tensor.slot.name}` ({inputs}): the result reaches {largest:.3g}, {dtype.torch_name} holds up to "
            f"{limit:.3g}; choose another dtype, `--set output.dtype=bfloat16`"
        )
    bad = int((~result.isfinite()).sum())
    return (
        f"`{tensor.slot.name}` ({inputs}): {bad} values of the result are NaN or infinite, so an input holds such "
        f"values; leave the tensor out of `select`, or take a sound checkpoint"
    )


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data
