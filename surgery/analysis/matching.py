"""Which matrices of two or three checkpoints are compared, and what that costs: from their headers alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from surgery.analysis.attention import Attention, find_attentions
from surgery.checkpoint import Checkpoint
from surgery.errors import Fault, PlanError
from surgery.header import TensorInfo, shown
from surgery.plan import INTERPRETER_BYTES
from surgery.quantity import Quantity
from surgery.select import Select, resolve
from surgery.spectral import cost
from surgery.wording import quoted

RANKS = ("20%", "5%", "50%")  # the main one first: what restoring puts back
QUICK_RANKS = ("5%", "1%")  # for so few triplets the decompositions take half the time of 20 %
LONGEST_NAME = 10_000  # bytes; what a file's directory of arrays holds is 65,535 with all that is added
_NUMBER = re.compile(r"\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of all models: a tensor, or one expert of a stack of them.

    `infos` are its tensors by model; `ranks` are how many leading directions are compared, for each rank that was
    asked for; `known` is how many triplets that takes: all n = min(rows, cols), or the largest rank.
    """

    name: str
    infos: Mapping[str, TensorInfo]
    expert: int
    slice: int
    stack: str
    layer: int
    module: str
    group: str
    ranks: tuple[int, ...]
    known: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = next(iter(self.infos.values())).shape[-2:]
        return rows, cols

    def tensors(self) -> Iterator[TensorInfo]:
        """All that is read, and perhaps more: for an expert the whole stack."""
        yield from self.infos.values()

    @property
    def double(self) -> bool:
        """Whether a model stores it in float64, so that arithmetic is in float64."""
        return any(info.dtype.name == "F64" for info in self.infos.values())

    @property
    def memory(self) -> int:
        """Upper bound of the bytes that a worker holds while it measures this matrix."""
        (rows, cols), models = self.shape, len(self.infos)
        elements, k = rows * cols, self.known
        stored = max(info.dtype.bits // 8 for info in self.infos.values()) * elements
        held = models * 4 * (elements + (rows + cols) * k) + 4 * elements
        overlaps = 4 * (2 * k * k + cost.ROW_BLOCK * k) * 2 + 8 * 8 * k * k
        cached = 8 * (rows + cols) * min(rows, cols)  # an entry with all triplets, as read and as tensors
        working = max(cost.workspace(self.shape, k), cached)
        return stored + (2 if self.double else 1) * (held + overlaps + working)

    @property
    def flops(self) -> int:
        """Floating-point operations, to first order."""
        (rows, cols), models, k = self.shape, len(self.infos), self.known
        pairs = 2 * models - 3
        decomposed = models * cost.flops(self.shape, k, matrices=1)
        return decomposed + pairs * 6 * (rows + cols) * k * k


@dataclass(frozen=True)
class Matching:
    """Everything that will be measured. `hash` identifies it, whatever the checkpoints' paths."""

    models: Mapping[str, Checkpoint]
    ranks: tuple[str, ...]
    quick: bool
    matrices: tuple[Matrix, ...]
    attentions: tuple[Attention, ...]
    embedding: str | None
    head: str | None
    remarks: tuple[str, ...]

    @property
    def base(self) -> str:
        """The name of the first model."""
        return next(iter(self.models))

    @property
    def decoder(self) -> str:
        """The stack of the base's text decoder, or nothing."""
        decoder = self.models[self.base].anatomy.decoder
        return decoder.prefix if decoder else ""

    @property
    def jobs(self) -> tuple[Matrix | Attention, ...]:
        """What is measured one by one, in the order of the checkpoint."""
        return (*self.matrices, *self.attentions)

    @cached_property
    def hash(self) -> str:
        """Hex digest of what is measured."""
        digest = hashlib.blake2b(digest_size=16)
        tied = [checkpoint.tied for checkpoint in self.models.values()]
        head_dims = [attention.head_dim for attention in self.attentions]
        settings = [list(self.models), self.ranks, self.quick, self.embedding, self.head, self.decoder, tied, head_dims]
        digest.update(json.dumps(settings).encode())
        for job in self.jobs:
            places = [(info.name, info.dtype.name, info.shape, info.file, info.start) for info in job.tensors()]
            digest.update(json.dumps([job.name, places]).encode())
        return digest.hexdigest()

    @property
    def kept_bytes(self) -> int:
        """What all decompositions take in float32."""
        return sum(4 * len(self.models) * sum(matrix.shape) * matrix.known for matrix in self.matrices)

    def peak_memory(self, workers: int, libraries: int = 0) -> int:
        """Upper bound of the process's resident memory in bytes with so many workers and no `--memory`."""
        return INTERPRETER_BYTES + libraries + sum(sorted((job.memory for job in self.jobs), reverse=True)[:workers])

    def check_memory(self, limit: int, libraries: int = 0) -> None:
        """Raises PlanError when a matrix alone takes more than a process of `limit` bytes has room for.

        `libraries` are the bytes that others than Python and torch take.
        """
        largest = max(self.jobs, key=lambda job: job.memory)
        needed = self.peak_memory(1, libraries)
        if needed > limit:
            message = (
                f"takes {largest.memory:,} bytes while it is measured, beside {INTERPRETER_BYTES + libraries:,} for "
                f"Python and its libraries; the limit is {limit:,}: raise `--memory` to at least {needed:,}, leave it "
                f"out with `--exclude`{'' if self.quick else ', or add `--quick`'}"
            )
            raise PlanError([Fault(f"`{largest.name}`", message)])


def match(
    models: Mapping[str, Checkpoint], ranks: Sequence[Quantity], *, select: Select | None = None, quick: bool = False
) -> Matching:
    """Match the matrices of the models, the base first, by name.

    `ranks` are the ranks to compare at, the main one first; none: the usual ones. Without `select`, every matrix is
    compared, experts of a stack one by one. Tensors that a model lacks, and embeddings of different vocabularies, are
    left out with a remark. Raises PlanError for a selector that matches nothing, for quantised weights, for other
    differences of shape, and where nothing is left.
    """
    return _Matcher(models, ranks, select, quick).matching()


class _Matcher:
    def __init__(
        self, models: Mapping[str, Checkpoint], ranks: Sequence[Quantity], select: Select | None, quick: bool
    ) -> None:
        self.models = models
        usual = QUICK_RANKS if quick else RANKS
        self.ranks = tuple(dict.fromkeys(ranks or map(Quantity.parse, usual)))
        self.select = select
        self.quick = quick
        self.base_name, self.base = next(iter(models.items()))
        self.faults: list[Fault] = []
        self.remarks: dict[str, list[str]] = {}

    def matching(self) -> Matching:
        names = [name for name in self._selected() if self._is_comparable(name)]
        self._remark_what_is_more()
        if not names and not self.faults:
            self.faults.append(Fault("", "the models have no matrix in common that can be compared"))
        if self.faults:
            raise PlanError(self.faults)
        anatomy = self.base.anatomy
        attentions, skipped = find_attentions(self.models, set(names))
        for reason in skipped:
            self.remarks.setdefault(reason, [])
        chosen = set(names)
        matrices = tuple(matrix for name in names for matrix in self._matrices(name))
        _refuse_names(matrices)
        return Matching(
            models=self.models,
            ranks=tuple(map(str, self.ranks)),
            quick=self.quick,
            matrices=matrices,
            attentions=attentions,
            embedding=anatomy.embedding if anatomy.embedding in chosen else None,
            head=anatomy.head if anatomy.head in chosen and not anatomy.tied else None,
            remarks=tuple(_remark(text, names) for text, names in self.remarks.items()),
        )

    def _remark_what_is_more(self) -> None:
        """Tensors that only other models have."""
        for model, checkpoint in self.models.items():
            for name in checkpoint.tensors:
                if name not in self.base.tensors:
                    self._remark(f"left out, since `{model}` has them and `{self.base_name}` does not", name)

    def _selected(self) -> list[str]:
        """The base's tensors that are asked for."""
        everything = list(self.base.tensors)
        if self.select is None:
            return everything
        try:
            return resolve(self.select, self.base.anatomy, everything)
        except ValueError as error:
            raise PlanError([Fault("", str(error))]) from error

    def _is_comparable(self, name: str) -> bool:
        """Whether a tensor is a matrix, or a stack of them, that all models have; notes why it is not."""
        info = self.base.tensors[name]
        if len(info.shape) not in (2, 3) or 0 in info.shape:
            self._remark("vectors (norms, biases) and convolutions are not compared", name)
            return False
        found = {model: checkpoint.tensors.get(name) for model, checkpoint in self.models.items()}
        lacking = [model for model, other in found.items() if other is None]
        if lacking:
            self._remark(f"left out, since {quoted(lacking)} {'lacks' if len(lacking) == 1 else 'lack'} them", name)
            return False
        return not self._quantised(name, found) and self._same_shape(name, found)

    def _quantised(self, name: str, found: Mapping[str, TensorInfo | None]) -> bool:
        for model, info in found.items():
            if info is not None and not info.dtype.arithmetic:
                if self.base.anatomy.group_of(name) is None:
                    self._remark("left out, since they hold integers or packed numbers", name)
                elif not any(fault.where == f"`{model}`" for fault in self.faults):
                    message = (
                        f"`{name}` is stored as {info.dtype.name}: its values mean nothing without their scales; "
                        f"dequantise `{self.models[model].source}` first, or leave it out with `--exclude`"
                    )
                    self.faults.append(Fault(f"`{model}`", message))
                return True
        return False

    def _same_shape(self, name: str, found: Mapping[str, TensorInfo | None]) -> bool:
        shapes = {model: list(info.shape) for model, info in found.items() if info is not None}
        ours = shapes[self.base_name]
        if all(shape == ours for shape in shapes.values()):
            return True
        anatomy = self.base.anatomy
        listed = ", ".join(f"{shape} in `{model}`" for model, shape in shapes.items())
        if name in (anatomy.embedding, anatomy.head) and all(shape[1:] == ours[1:] for shape in shapes.values()):
            self._remark(
                f"left out, since the vocabularies differ ({listed}) and rows are not matched by position", name
            )
        elif not any(fault.where == "shapes" for fault in self.faults):
            message = f"`{name}` is {listed}; expected checkpoints of one architecture: leave it out with `--exclude`"
            self.faults.append(Fault("shapes", message))
        return False

    def _matrices(self, name: str) -> Iterator[Matrix]:
        infos = {model: checkpoint.tensors[name] for model, checkpoint in self.models.items()}
        info = infos[self.base_name]
        anatomy = self.base.anatomy
        stack, layer = anatomy.layer_of(name) or ("", -1)
        inside = name.removeprefix(f"{stack}.{layer}.") if stack else name
        module, numbered = _module(inside)
        ranks = tuple(self._rank(rank, min(info.shape[-2:]), name) for rank in self.ranks)
        known = max(ranks) if self.quick else min(info.shape[-2:])
        stacked = len(info.shape) == 3
        for i in range(info.shape[0] if stacked else 1):
            yield Matrix(
                name=f"{name}[{i}]" if stacked else name,
                infos=infos,
                expert=i if stacked else numbered,
                slice=i,
                stack=stack,
                layer=layer,
                module=module,
                group=anatomy.group_of(name) or "",
                ranks=ranks,
                known=known,
            )

    def _rank(self, asked: Quantity, n: int, name: str) -> int:
        """The rank of a matrix with n directions. All n of them span the same space whatever the training did."""
        rank = max(1, asked.of(n))
        if rank < n or n == 1:
            return rank
        self._remark(f"rank {asked} is all of their {n} directions, which span one space; {n // 2} are compared", name)
        return n // 2

    def _remark(self, text: str, name: str) -> None:
        self.remarks.setdefault(text, []).append(name)


def _refuse_names(matrices: Sequence[Matrix]) -> None:
    """Refuse names that results could not be kept under."""
    counts = Counter(matrix.name for matrix in matrices)
    name, count = counts.most_common(1)[0]
    longest = max(counts, key=len)
    if count > 1:
        raise PlanError([Fault("", f"two matrices would be called `{shown(name)}`; leave one out with `--exclude`")])
    if len(longest.encode()) > LONGEST_NAME:
        message = f"`{shown(longest)}` has {len(longest):,} characters, more than names have; leave it out"
        raise PlanError([Fault("", message)])


def _module(inside: str) -> tuple[str, int]:
    """`mlp.experts.up_proj` and 5 for `mlp.experts.5.up_proj.weight`; -1 without a number."""
    parts = inside.removesuffix(".weight").split(".")
    numbers = [int(part) for part in parts if _NUMBER.fullmatch(part)]
    return ".".join(part for part in parts if not _NUMBER.fullmatch(part)), numbers[0] if numbers else -1


def _remark(text: str, names: list[str]) -> str:
    if not names:
        return text
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"`{shown(names[0])}`{more}: {text}"
