"""What several outputs have in common: the tensors that are made together, from inputs that are read once."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from surgery.ops.base import RESULT
from surgery.plan import COPY_BYTES, Plan, Source, TensorPlan, check_memory, memory_of, peak_memory
from surgery.spectral import cost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from surgery.checkpoint import Checkpoint
    from surgery.header import TensorInfo
    from surgery.heads import Projection
    from surgery.ops.base import Op
    from surgery.row_map import RowMap
    from surgery.spectral.shared import Size


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor of one of the models, whatever roles this has; with `rows`, rows of it and of `others`."""

    model: int
    info: TensorInfo
    rows: RowMap | None = None
    others: tuple[Input, ...] = ()

    @property
    def parts(self) -> tuple[Input, ...]:
        """Everything that is read for it, itself first."""
        return (self, *self.others)


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of one of the outputs. `inputs` are those of `tensor`, in their order, and `pairs` its partners."""

    output: int
    plan: Plan
    tensor: TensorPlan
    inputs: tuple[Input, ...]
    pairs: Mapping[Projection, tuple[Input, Input]] = field(default_factory=dict)

    @property
    def ops(self) -> tuple[Op, ...]:
        """The operations that make it, in order."""
        return self.tensor.ops

    def asked(self) -> Iterator[tuple[Input, Size]]:
        """The decompositions of inputs that the operations will ask for. Of what a step made, they are not shared."""
        if not self.tensor.matrices:
            return
        rows, columns = self.tensor.piece_shape
        read = dict(zip((source.role for source in self.tensor.inputs), self.inputs, strict=True))
        if self.tensor.base is not None:
            read = dict(zip((source.role for source in self.tensor.sources), self.inputs[1:], strict=True))
        running = self.inputs[0] if self.tensor.base is not None else None
        for op in self.ops:
            for role, size in op.decomposes((rows, columns)).items():
                matrix = running if role == RESULT else read[role]
                if matrix is not None:
                    yield matrix, size
            running = None


@dataclass(frozen=True)
class Job:
    """Tensors of several outputs that are made in one go, piece by piece, or one that is copied.

    The outputs may ask for decompositions of different sizes of the same input. `sizes` are those that serve all of
    them, where more than one asks; they depend on the plans alone, not on what an interrupted run has finished.
    """

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """The tensor, called alike in all outputs."""
        return self.parts[0].tensor.slot.name

    @property
    def copies(self) -> bool:
        """Whether it is a copy, byte for byte."""
        return self.parts[0].tensor.action == "copy"

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """Everything that is read piece by piece, once each."""
        return tuple(dict.fromkeys(each for part in self.parts for each in part.inputs))

    @property
    def all_inputs(self) -> tuple[Input, ...]:
        """Everything that is read, once each."""
        partners = (each for part in self.parts for pair in part.pairs.values() for each in pair)
        return tuple(dict.fromkeys([*self.inputs, *partners]))

    @property
    def piece_shape(self) -> tuple[int, ...]:
        """The unit of work: one matrix where a part works on matrices, some rows, or a flat run of elements."""
        shapes = [part.tensor.piece_shape for part in self.parts if part.tensor.matrices]
        return shapes[0] if shapes else self.parts[0].tensor.piece_shape

    @cached_property
    def sizes(self) -> Mapping[Input, Size]:
        """How many leading and trailing triplets are taken of the inputs that several parts decompose."""
        asked: dict[Input, list[Size]] = defaultdict(list)
        for part in self.parts:
            for matrix, size in part.asked():
                asked[matrix].append(size)
        wanted = [{matrix for matrix, _ in part.asked()} for part in self.parts]
        n = min(self.piece_shape)
        return {
            matrix: _union(sizes, n) for matrix, sizes in asked.items() if sum(matrix in each for each in wanted) > 1
        }

    @property
    def double(self) -> bool:
        """Whether the arithmetic is in float64."""
        return _double(self.parts[0].tensor)

    @property
    def flops(self) -> int:
        """Floating-point operations, to first order, as if nothing were shared."""
        return sum(part.plan.flops(part.tensor) for part in self.parts)

    @cached_property
    def memory(self) -> int:
        """Upper bound of the bytes that a worker holds while it does the job."""
        if self.copies:
            return COPY_BYTES
        m, n = max(self.piece_shape), min(self.piece_shape)
        kept = sum(4 * (m + n) * sum(size) + 8 * (sum(size) + n) for size in self.sizes.values())
        kept += sum(part.tensor.kept for part in self.parts)
        own = [part.tensor.workspace for part in self.parts]
        shared = [cost.workspace(self.piece_shape, *size) for size in self.sizes.values()]
        slots = [part.tensor.slot for part in self.parts]
        workspace = kept + max([*own, *shared], default=0)
        sources = {
            each: source for part in self.parts for each, source in zip(part.inputs, part.tensor.inputs, strict=True)
        }
        stored = [info for source in sources.values() for info in source.stored]
        return memory_of(prod(self.piece_shape), stored, slots, workspace)


class Batch:
    """Plans that are carried out in one pass over the tensors."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = tuple(plans)

    @cached_property
    def models(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that are read; one that has several roles, or a role in several plans, once."""
        return tuple({id(model): model for plan in self.plans for model in plan.inputs.values()}.values())

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """Everything that makes the tensors of all outputs, in the order of the plans."""
        models = {id(model): i for i, model in enumerate(self.models)}
        groups: dict[object, list[Part]] = defaultdict(list)
        for output, plan in enumerate(self.plans):
            numbers = {role: models[id(model)] for role, model in plan.inputs.items()}
            for tensor in plan.tensors:
                inputs = tuple(_input(source, numbers) for source in tensor.inputs)
                partners = tensor.partners.sources.items() if tensor.partners is not None else ()
                pairs = {of: (_input(one, numbers), _input(other, numbers)) for of, (one, other) in partners}
                groups[_kind(output, tensor)].append(Part(output, plan, tensor, inputs, pairs))
        return tuple(Job(tuple(parts)) for parts in groups.values())

    def peak_memory(self, workers: int) -> int:
        """Upper bound of the process's resident memory in bytes with so many workers and no `--memory`."""
        return peak_memory((job.memory for job in self.jobs), workers)

    def check_memory(self, limit: int) -> None:
        """Raises PlanError when a job alone takes more than a process of `limit` bytes has room for."""
        check_memory(((job.memory, job.name) for job in self.jobs), limit)

    def others(self, output: int) -> str | None:
        """A digest of the decompositions of which an output gets a part, since others need more; None without such.

        With the same plan and the same digest an output has the same bytes.
        """
        larger = []
        for job in self.jobs:
            for part in job.parts:
                if part.output == output and job.sizes:
                    sizes = [(asked, job.sizes.get(matrix, asked)) for matrix, asked in part.asked()]
                    if any(_differs(asked, size, min(job.piece_shape)) for asked, size in sizes):
                        larger.append((job.name, sizes))
        larger.sort()  # the order of the jobs is that of the plans
        return hashlib.blake2b(json.dumps(larger).encode(), digest_size=16).hexdigest() if larger else None


def _input(source: Source, numbers: Mapping[str, int]) -> Input:
    others = tuple(_input(other, numbers) for other in source.others)
    return Input(numbers[source.role], source.info, source.rows, others)


def _kind(output: int, tensor: TensorPlan) -> object:
    """Tensors of one kind are made together: read in the same pieces, computed in the same precision.

    Runs of elements, and of rows, are parts of a matrix, but not of a stack of them, nor of each other.
    """
    slot = tensor.slot
    if tensor.action == "copy":
        return output, slot.name
    apart = tensor.matrices and len(slot.shape) == 3, tensor.rows
    return slot.name, slot.shape, _double(tensor), *apart


def _double(tensor: TensorPlan) -> bool:
    return any(info.dtype.name == "F64" for source in tensor.inputs for info in source.stored)


def _union(sizes: Sequence[Size], n: int) -> Size:
    """The smallest decomposition of which all these are parts."""
    head, tail = (max(ends) for ends in zip(*sizes, strict=True))
    return (n, 0) if head + tail >= n else (head, tail)


def _differs(asked: Size, size: Size, n: int) -> bool:
    """Whether one gets other bits than those asked for: values have their own, except from a full decomposition."""
    return asked != size and (asked != (0, 0) or size == (n, 0))
