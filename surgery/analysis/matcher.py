"""Makes the matching: which matrices of two or three checkpoints are compared, from their headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from surgery.analysis.attention import find_attentions
from surgery.analysis.matching import Matching, Matrix
from surgery.checkpoint import Checkpoint
from surgery.errors import Fault, PlanError
from surgery.header import TensorInfo, listed, shown
from surgery.quantity import Quantity
from surgery.select import Select, resolve
from surgery.wording import quoted

RANKS = ("20%", "5%", "50%")  # the main one first: what restoring puts back
QUICK_RANKS = ("5%", "1%")  # for so few triplets the decompositions take half the time of 20 %
LONGEST_NAME = 10_000  # bytes; what a file's directory of arrays holds is 65,535 with all that is added
_NUMBER = re.compile(r"\d+", re.ASCII)


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
            remarks=(
                *(note for checkpoint in self.models.values() for note in checkpoint.notes),
                *(f"{listed(names)}: {text}" if names else text for text, names in self.remarks.items()),
            ),
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
