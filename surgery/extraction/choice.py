"""Which tensors of two models become factors, are stored whole or are left out, and what that costs; headers alone."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from surgery.checkpoint import Checkpoint
from surgery.dtypes import DType
from surgery.errors import Fault, PlanError
from surgery.extraction.fit import layer_faults, token_faults
from surgery.header import TensorInfo, listed, shown
from surgery.plan import PIECE_ELEMENTS, check_memory
from surgery.quantity import Quantity
from surgery.select import Select, resolve
from surgery.spectral import cost

# The head's name where it is tied and not stored: the one that transformers has for it beside this embedding.
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Architectures whose layers store their weights as inputs x outputs, which factors of linear layers do not fit.
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_UNTIED = (
    "embedding and output head are one matrix in the base and two in the model, which an adapter cannot make of one"
)
_UNNAMED = (
    "is the output head, too, of which PEFT wants the name, and the files do not tell it; it is left out. To keep it, "
    "store the head in the base's files under its own name as well"
)


@dataclass(frozen=True, slots=True)
class Aim:
    """How close the adapter comes: a rank, or the relative error that each matrix may have. One of the two is set."""

    rank: Quantity | None = None
    error: float | None = None

    def __str__(self) -> str:
        return f"rank {self.rank}" if self.rank is not None else f"error {self.error:g}"

    def most(self, n: int) -> int:
        """The largest rank that it may give a matrix with n directions."""
        return n if self.rank is None else max(1, self.rank.of(n))


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of both models. `factors`: a matrix to decompose; `save`: stored whole if it differs.

    `twin`: the output head that is the same matrix. PEFT wants a tensor that is stored whole under both names.
    """

    name: str
    base: TensorInfo
    model: TensorInfo
    factors: bool
    save: bool
    rank: int
    twin: str | None = None

    @property
    def stored_as(self) -> tuple[str, ...]:
        """The names under which it is stored whole."""
        return (self.name, self.twin) if self.twin else (self.name,)

    def bytes_at_most(self, factor: DType) -> int:
        """Upper bound of what the adapter stores of it, with factors of that dtype."""
        if self.factors:
            return factor.nbytes(self.rank * sum(self.base.shape))
        return self.model.nbytes * len(self.stored_as) if self.save else 0

    @property
    def double(self) -> bool:
        """Whether the arithmetic is in float64."""
        return "F64" in (self.base.dtype.name, self.model.dtype.name)

    @property
    def piece(self) -> int:
        """Elements that are read at a time."""
        return self.base.elements if self.factors else min(self.base.elements, PIECE_ELEMENTS)

    @property
    def memory(self) -> int:
        """Upper bound of the bytes that a worker holds for it."""
        infos = (self.base, self.model)
        stored = sum(info.stored.dtype.bits // 8 for info in infos)
        adapters = sum(info.adapted.memory(info.shape) for info in infos if info.adapted)
        working = cost.workspace(self.base.shape, self.rank) if self.factors else 0
        kept = 16 * sum(self.base.shape) * self.rank if self.factors else 0  # B and A, as computed and as stored
        wide = 2 if self.double else 1
        return self.piece * (stored + wide * 12) + wide * (adapters + working + kept)

    @property
    def flops(self) -> int:
        """Floating-point operations, to first order."""
        adapted = sum(info.adapted.flops(info.elements) for info in (self.base, self.model) if info.adapted)
        if not self.factors:
            return adapted + 4 * self.base.elements
        return adapted + cost.flops(self.base.shape, self.rank, matrices=1) + 2 * self.base.elements * self.rank


@dataclass(frozen=True)
class Choice:
    """Everything that will be read and made. `hash` identifies the work, whatever the checkpoints' paths."""

    base: Checkpoint
    model: Checkpoint
    aim: Aim
    dtype: str
    targets: tuple[Target, ...]
    remarks: tuple[str, ...]
    matrices: frozenset[str]  # every matrix of the base that PEFT could take for a module of its own

    @property
    def inputs(self) -> Mapping[str, Checkpoint]:
        """Both models by their roles."""
        return {"base": self.base, "model": self.model}

    @property
    def settings(self) -> dict[str, object]:
        """What was asked for, as plain data."""
        saved = [target.name for target in self.targets if target.save]
        return {"aim": str(self.aim), "dtype": self.dtype, "tensors": len(self.targets), "save": saved}

    def bytes_at_most(self, factor: DType) -> int | None:
        """Upper bound of the adapter's tensors, reached if all differ; none where an error decides over the ranks."""
        if self.aim.error is not None:
            return None
        return sum(target.bytes_at_most(factor) for target in self.targets)

    @cached_property
    def hash(self) -> str:
        """Hex digest of settings and of where every tensor lies."""
        digest = hashlib.blake2b(digest_size=16)
        names = self.base.hub_id, self.base.revision
        digest.update(json.dumps([self.settings, names]).encode())
        for target in self.targets:
            infos = (target.base, target.model)
            places = [
                (info.dtype.name, info.shape, info.file, info.start, info.adapted and info.adapted.key())
                for info in infos
            ]
            row = [target.name, target.factors, target.save, target.rank, target.twin, places]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def check_memory(self, limit: int) -> None:
        """Raises PlanError when a tensor alone takes more than a process of `limit` bytes has room for."""
        check_memory(((target.memory, target.name) for target in self.targets), limit)


def choose(
    base: Checkpoint,
    model: Checkpoint,
    aim: Aim,
    dtype: str,
    *,
    select: Select | None = None,
    save: Sequence[str] = (),
) -> Choice:
    """What is compared and how. `save` are groups or globs of what is stored whole where it differs.

    Raises PlanError with everything that does not fit.
    """
    return _Chooser(base, model, aim, select, save).choice(dtype)


class _Chooser:
    def __init__(
        self, base: Checkpoint, model: Checkpoint, aim: Aim, select: Select | None, save: Sequence[str]
    ) -> None:
        self.base, self.model, self.aim = base, model, aim
        self.faults: list[Fault] = []
        self.remarks: dict[str, list[str]] = defaultdict(list)
        everything = list(base.tensors)
        self.selected = self._resolve(select, everything) if select is not None else everything
        self.saved = set(self._resolve(Select(tensors=tuple(save)), everything)) if save else set()
        self.embedding, self.head = base.anatomy.embedding, base.anatomy.head
        if base.tied and self.head in self.saved and self.embedding is not None:
            self.saved.add(self.embedding)

    def choice(self, dtype: str) -> Choice:
        kind = self.base.config.get("model_type")
        if kind in _TRANSPOSED:
            message = f"`model_type` is `{kind}`, whose layers store their weights transposed; not supported"
            self.faults.append(Fault(self.base.source, message))
        self.faults += layer_faults(self.base, self.model)
        targets = tuple(self._targets())
        stored = (target.name for target in targets if target.factors or target.save)
        rows = (name for name in stored if name in (self.embedding, self.head))
        self.faults += (fault for name in rows for fault in token_faults(self.base, self.model, name))
        if not self.faults and not any(target.factors or target.save for target in targets):
            self.faults.append(Fault("", "the models have no matrix in common that is selected"))
        if self.faults:
            raise PlanError(self.faults)
        if self.base.adapters:
            self.remarks["the base has an adapter itself; name both to load what is made, `BASE+ADAPTER+OUT`"] = []
        for name in self.model.tensors:
            if name not in self.base.tensors:
                self.remarks["left out, since the base lacks them"].append(name)
        notes = (*self.base.notes, *self.model.notes)
        remarks = tuple(f"{listed(names)}: {text}" if names else text for text, names in self.remarks.items())
        matrices = frozenset(name for name in self.base.tensors if self._is_matrix(name))
        return Choice(self.base, self.model, self.aim, dtype, targets, (*notes, *remarks), matrices)

    def _resolve(self, select: Select, names: list[str]) -> list[str]:
        try:
            return resolve(select, self.base.anatomy, names)
        except ValueError as error:
            self.faults.append(Fault("", str(error)))
            return []

    def _targets(self) -> Iterator[Target]:
        for name in self.selected:
            ours, theirs = self.base.tensors[name], self.model.tensors.get(name)
            if self.base.tied and name == self.head:
                if theirs is not None and not self.model.tied:
                    self.remarks[_UNTIED].append(name)
            elif theirs is None:
                self.remarks["left out, since the model lacks them"].append(name)
            elif ours.shape != theirs.shape:
                shapes = f"{list(ours.shape)} in the base and {list(theirs.shape)} in the model"
                message = f"is {shapes}; expected equal shapes: leave it out with `--exclude`"
                self.faults.append(Fault(f"`{shown(name)}`", message))
            elif not (ours.dtype.arithmetic and theirs.dtype.arithmetic):
                self._not_computable(name, ours, theirs)
            elif ours.elements:
                factors = name not in self.saved and self._is_matrix(name)
                save = name in self.saved and self._is_savable(name)
                rank = self.aim.most(min(ours.shape)) if factors else 0
                yield Target(name, ours, theirs, factors, save, rank, self._twin(name) if save else None)

    def _not_computable(self, name: str, ours: TensorInfo, theirs: TensorInfo) -> None:
        if self.base.anatomy.group_of(name) is None:
            self.remarks["left out, since they hold integers or packed numbers"].append(name)
        else:
            dtype = next(info.dtype.name for info in (ours, theirs) if not info.dtype.arithmetic)
            message = f"is stored as {dtype}: dequantise the model first, or leave it out with `--exclude`"
            self.faults.append(Fault(f"`{shown(name)}`", message))

    def _is_matrix(self, name: str) -> bool:
        """Whether it is the weight of a linear layer, as far as names and shapes tell."""
        info = self.base.tensors[name]
        embedding = self.base.anatomy.group_of(name) == "embedding"
        return name.endswith(".weight") and len(info.shape) == 2 and prod(info.shape) > 0 and not embedding

    def _is_savable(self, name: str) -> bool:
        """Whether PEFT can store its module whole: the module must not have factors at the same time."""
        if self.base.tied and name == self.embedding:
            if not self.model.tied:
                self.remarks[_UNTIED].append(name)
            elif self._twin(name) is None:
                self.remarks[_UNNAMED].append(name)
            return self.model.tied and self._twin(name) is not None
        module, _, part = name.rpartition(".")
        weight = f"{module}.weight"
        beside = part == "bias" and weight in self.base.tensors and self._is_matrix(weight) and weight not in self.saved
        if part not in ("weight", "bias") or not module or beside:
            self.remarks["cannot be stored whole, since their modules have factors or parts of their own"].append(name)
            return False
        return True

    def _twin(self, name: str) -> str | None:
        """The name of a head that is this matrix; None where there is none, or its name is not known."""
        if not self.base.tied or name != self.embedding:
            return None
        return self.head or (_HEAD if name == _EMBEDDING else None)
