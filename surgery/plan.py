"""What a plan is: for every output tensor where its bytes come from, what is done to them and where they go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

from surgery.errors import Fault, PlanError

if TYPE_CHECKING:
    from surgery.checkpoint import Checkpoint
    from surgery.companions import Companion
    from surgery.header import TensorInfo
    from surgery.ops.base import Op
    from surgery.partners import Partners
    from surgery.recipe import Recipe
    from surgery.row_map import RowMap

PIECE_ELEMENTS = 1 << 19  # of 2^17 ... 2^21 the fastest: smaller ones pay for calls, larger ones miss the cache
KEPT_ELEMENTS = 1 << 28  # 1 GiB in float32: a larger stack of experts is made anew each time that it is measured
COPY_BYTES = 1 << 20  # the buffer through which copied bytes are hashed
INTERPRETER_BYTES = 400_000_000  # Python with torch loaded: 0.35 GB measured

Action = Literal["copy", "cast", "gather", "adapt", "compute"]


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of an input; with `rows`, rows of it (part 0) and of those of `others` (1, 2, ...), as that map says."""

    role: str
    info: TensorInfo
    rows: RowMap | None = None
    others: tuple[Source, ...] = ()

    @property
    def parts(self) -> tuple[Source, ...]:
        """Everything that is read for it, itself first."""
        return (self, *self.others)

    @property
    def nbytes(self) -> int:
        """Bytes that are read for it."""
        if self.rows is None:
            return self.info.stored.nbytes
        once = sum(
            part.info.dtype.nbytes(count * prod(part.info.shape[1:]))
            for part, count in zip(self.parts, self.rows.counts, strict=False)
        )
        return once * (2 if self.rows.means else 1)  # the mean is taken beforehand

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        """Of each dtype in which it is stored one of its tensors, its own first."""
        return tuple({part.info.dtype.name: part.info for part in reversed(self.parts)}.values())


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A shard of the output: everything before the tensors' bytes, and the size of the whole."""

    name: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How one output tensor is made; `slot` is its place in the output.

    `base` is what the running tensor is at first (None when the first step ignores it), `steps` are applied to
    it in order, as the operations `ops`; `sources` are the other tensors that they read. Without steps, `base` is
    copied or cast. `known_as` is what operations that choose at random call it: of a tied head that is stored, the
    embedding's name. `partners` are what the first step reads beside it, if that works on attention heads.
    """

    slot: TensorInfo
    base: Source | None
    steps: tuple[int, ...] = ()
    ops: tuple[Op, ...] = ()
    sources: tuple[Source, ...] = ()
    known_as: str = ""
    partners: Partners | None = None

    @property
    def matrices(self) -> bool:
        """Whether it is worked on by whole matrices; a vector is one row."""
        return any(op.kind in ("matrix", "heads") for op in self.ops)

    @property
    def rows(self) -> bool:
        """Whether it is worked on by whole rows, and not by matrices."""
        return not self.matrices and any(op.kind == "rows" for op in self.ops)

    @property
    def passes(self) -> int:
        """How often it is read: once to edit it, and, unless it is one piece, by each operation that measures it."""
        if prod(self.piece_shape) == self.slot.elements:
            return 1
        return 1 + sum(op.passes - 1 for op in self.ops)

    @property
    def kept_after(self) -> frozenset[int]:
        """After how many operations what they made is kept, whole: the last one on matrices before each that measures.

        Others are cheap, and what they make is made anew in each pass.
        """
        found, on_matrices = set(), 0
        for number, op in enumerate(self.ops, 1):
            if op.passes > 1 and on_matrices:
                found.add(on_matrices)
            if op.kind == "matrix":
                on_matrices = number
        return frozenset(found if self.slot.elements <= KEPT_ELEMENTS else ())

    @property
    def action(self) -> Action:
        """`copy` (byte for byte), `cast` (another dtype), `gather` (rows by token), `adapt` (with adapters) or
        `compute`.
        """
        if self.steps:
            return "compute"
        assert self.base is not None
        if self.base.rows is not None:
            return "gather"
        if self.base.info.adapted is not None:
            return "adapt"
        return "copy" if self.base.info.dtype == self.slot.dtype else "cast"

    @property
    def inputs(self) -> tuple[Source, ...]:
        """Everything that is read piece by piece for this tensor, the running tensor first."""
        return self.sources if self.base is None else (self.base, *self.sources)

    @property
    def all_inputs(self) -> tuple[Source, ...]:
        """Everything that is read for it, its partners too."""
        return self.inputs if self.partners is None else (*self.inputs, *self.partners.all)

    @property
    def read(self) -> tuple[str, ...]:
        """The role of each input, and the name there where that is another: `sft model.layers.8.mlp.up_proj.weight`."""
        told = (
            source.role if source.info.name == self.slot.name else f"{source.role} {source.info.name}"
            for source in self.all_inputs
        )
        return tuple(dict.fromkeys(told))

    @property
    def piece_shape(self) -> tuple[int, ...]:
        """The unit of work: one matrix, some rows, or a flat run of elements."""
        if self.matrices:
            return self.slot.shape[-2:] if len(self.slot.shape) > 1 else (1, self.slot.elements)
        if self.rows:
            columns = self.slot.shape[-1] if self.slot.shape else 1
            return min(self.slot.elements // max(columns, 1), max(1, PIECE_ELEMENTS // max(columns, 1))), columns
        return (min(self.slot.elements, PIECE_ELEMENTS),)

    @property
    def bytes_read(self) -> int:
        """Bytes that are read for it: inputs as often as it has passes, the factors of their adapters once."""
        pieces = sum(
            source.nbytes * self.passes + sum(each.nbytes for each in source.info.factors) for source in self.inputs
        )
        return pieces + (self.partners.nbytes if self.partners is not None else 0)

    @property
    def kept(self) -> int:
        """Bytes that stay while it is made: what was found of its partners, what is made once, in float32, and what
        operations keep of their measuring.
        """
        partners = self.partners.kept if self.partners is not None else 0
        made = 4 * self.slot.elements if self.kept_after else 0
        return partners + made + sum(op.kept(self.slot.shape) for op in self.ops)

    @property
    def workspace(self) -> int:
        """Upper bound of the bytes that its operations allocate beside that, counted for float32."""
        partners = self.partners.memory if self.partners is not None else 0
        return max([partners, *(op.workspace(self.piece_shape) for op in self.ops)])

    @property
    def matrix_count(self) -> int:
        """The number of matrices, for a tensor that is worked on by matrices."""
        return self.slot.shape[0] if len(self.slot.shape) == 3 else 1


@dataclass(frozen=True)
class Plan:
    """Everything that will happen, known from recipe and headers alone.

    `remarks` are what a user should know before starting. Where the recipe has slices, `layers` tells of each which
    layers of the output it makes, and of what: `("16-31", "base 16-31, sft 0-15")`. `tokenizer` is a digest of the
    tokenizer's files where these are made. `hash` identifies the work: two plans with one hash give the same bytes from
    the same inputs.
    """

    recipe: Recipe
    inputs: Mapping[str, Checkpoint]
    tensors: tuple[TensorPlan, ...]
    files: tuple[OutputFile, ...]
    index: bytes | None
    index_name: str
    companions: tuple[Companion, ...]
    remarks: tuple[str, ...] = ()
    layers: tuple[tuple[str, str], ...] = ()
    tokenizer: str = ""

    @property
    def bytes_read(self) -> int:
        """Bytes of the inputs that are read."""
        return sum(tensor.bytes_read for tensor in self.tensors)

    @property
    def bytes_written(self) -> int:
        """Size of the output's tensor files."""
        return sum(file.size for file in self.files)

    def flops(self, tensor: TensorPlan) -> int:
        """Floating-point operations for one tensor, to first order."""
        adapted = [source.info.adapted for source in tensor.inputs if source.info.adapted]
        before = sum(each.flops(tensor.slot.elements) for each in adapted) * tensor.passes
        before += tensor.partners.flops if tensor.partners is not None else 0
        if tensor.matrices:
            return before + sum(op.flops(tensor.piece_shape) for op in tensor.ops) * tensor.matrix_count
        columns = tensor.piece_shape[1:]
        shape = (tensor.slot.elements // max(prod(columns), 1), *columns)
        return before + sum(op.flops(shape) for op in tensor.ops)

    def memory(self, tensor: TensorPlan) -> int:
        """Bytes that a worker holds while it makes a tensor."""
        if tensor.action == "copy":
            return COPY_BYTES
        stored = [info for source in tensor.inputs for info in source.stored]
        return memory_of(prod(tensor.piece_shape), stored, [tensor.slot], tensor.kept + tensor.workspace)

    def peak_memory(self, workers: int) -> int:
        """Upper bound of the process's resident memory in bytes with so many workers and no `--memory`."""
        return peak_memory(map(self.memory, self.tensors), workers)

    def check_memory(self, limit: int) -> None:
        """Raises PlanError when a tensor alone takes more than a process of `limit` bytes has room for."""
        check_memory(((self.memory(tensor), tensor.slot.name) for tensor in self.tensors), limit)

    @cached_property
    def hash(self) -> str:
        """Hex digest of recipe, tensor plans and output layout; paths and times are not in it."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps(self.recipe.canonical(), sort_keys=True).encode())
        for tensor in self.tensors:
            inputs = [_identity(source) for source in tensor.inputs]
            slot = tensor.slot
            row = (slot.name, slot.dtype.name, slot.shape, slot.file, slot.start, tensor.known_as, tensor.steps, inputs)
            digest.update(json.dumps(row).encode())
            adapted = [(s.role, s.info.adapted.key()) for s in tensor.all_inputs if s.info.adapted]
            if adapted:
                digest.update(json.dumps(adapted).encode())
            if tensor.partners is not None:
                read = [_identity(source) for source in tensor.partners.all]
                digest.update(json.dumps((tensor.partners.heads.shape, read)).encode())
        for file in self.files:
            digest.update(json.dumps((file.name, file.size)).encode())
            digest.update(file.header)
        digest.update(self.tokenizer.encode())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.hash == other.hash

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)


def _identity(source: Source) -> tuple[object, ...]:
    """What decides which bytes are read."""
    place = (source.role, source.info.dtype.name, source.info.file, source.info.start)
    return place if source.rows is None else (*place, source.rows.digest, *map(_identity, source.others))


def memory_of(elements: int, inputs: Sequence[TensorInfo], slots: Iterable[TensorInfo], workspace: int) -> int:
    """Bytes that a worker holds while it works on pieces of so many elements: those of the inputs and of a result, as
    stored and in the dtype of the arithmetic, what adapters of the inputs take, and the workspace of the operations,
    counted for float32.
    """
    stored = sum(info.stored.dtype.bits // 8 for info in inputs)
    wide = 2 if any(info.dtype.name == "F64" for info in inputs) else 1
    working = 4 * wide * len(inputs)
    result = 4 * wide + max(slot.dtype.bits // 8 for slot in slots)
    adapters = sum(info.adapted.memory(info.shape) for info in inputs if info.adapted)
    return elements * (stored + working + result) + wide * (workspace + adapters)


def peak_memory(jobs: Iterable[int], workers: int) -> int:
    """Upper bound of the process's resident memory in bytes when so many workers do jobs of these sizes."""
    return INTERPRETER_BYTES + sum(sorted(jobs, reverse=True)[:workers])


def check_memory(jobs: Iterable[tuple[int, str]], limit: int) -> None:
    """Raises PlanError when the largest of the jobs, each with its tensor's name, does not fit into `limit` bytes."""
    largest, name = max(jobs, key=itemgetter(0))
    needed = largest + INTERPRETER_BYTES
    if needed > limit:
        message = (
            f"takes {largest:,} bytes while it is made, beside {INTERPRETER_BYTES:,} for Python and torch; the limit "
            f"is {limit:,}: raise `--memory` to at least {needed:,}"
        )
        raise PlanError([Fault(f"`{name}`", message)])
