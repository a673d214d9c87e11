"""A sweep with its models: every candidate planned, every example drawn, before anything is made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from blake3 import blake3

from evalkit.engines.base import Model as ScoredModel
from evalkit.errors import SweepError
from evalkit.evaluation import Evaluation
from evalkit.models import open_for_engine
from evalkit.rendering import Renderer
from evalkit.room import check_room
from evalkit.store import label
from evalkit.sweeps.choice import Aim
from evalkit.sweeps.grid import Candidate
from evalkit.sweeps.halves import HALVES, empty_halves, half_of
from evalkit.sweeps.spec import Sweep
from surgery.api import Model, Variant
from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.errors import Fault, Faults, SurgeryError
from surgery.jobs import Batch
from surgery.manifest import identity
from surgery.plan import Plan
from surgery.planner import make_plan
from surgery.source import Source
from surgery.wording import numbered, quoted, show

FEW = 10  # problems of a half, below which the interval of a share spans more than half of what is possible


@dataclass(frozen=True)
class Work:
    """A candidate with its plan and the models of its recipe's roles.

    `key` is a digest of all that decides its bytes when it is made alone, `shared` one of the decompositions of which
    it gets a part, since other candidates need more; None without such. `place` is the name of its directory.
    """

    candidate: Candidate
    plan: Plan
    models: Mapping[str, Model]
    key: str
    shared: str | None
    place: str

    @property
    def name(self) -> str:
        """The candidate's."""
        return self.candidate.name

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return self.plan.bytes_written

    def variant(self, checkpoints: Path) -> Variant:
        """What `surgery.apply_all` makes of it."""
        return Variant(self.candidate.recipe, checkpoints / self.place, models=self.models)


@dataclass(frozen=True)
class Bound:
    """A sweep with its models, candidates and evaluations: all that can be wrong beforehand is known to be right."""

    sweep: Sweep
    models: Mapping[str, Model]
    works: tuple[Work, ...]
    evaluations: tuple[Evaluation, ...]
    aim: Aim

    def check_memory(self, limit: int) -> None:
        """Raises PlanError where a tensor takes more than a process of `limit` bytes has room for, in any batch."""
        Batch([work.plan for work in self.works]).check_memory(limit)

    def check_prompts(self) -> None:
        """Raises TaskError or EngineError where a model has no room for a prompt, or no tokenizer, as scoring it would.

        Of a model with adapters, the tokenizer is that of its base.
        """
        for model in dict.fromkeys(map(str, self.models.values())):
            root = open_for_engine(model).root
            renderer = Renderer(ScoredModel(model, "", root), self.evaluations[0].chat_template)
            for each in self.evaluations:
                check_room(each, renderer, each.examples if each.answers else (), each.examples if each.loss else ())

    @cached_property
    def examples(self) -> Mapping[str, int]:
        """How many of each split every model is asked, under all seeds."""
        counts = Counter(example.split for each in self.evaluations for example in each.examples)
        return {split: counts[split] for split in self.aim.splits}

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What makes the choice, or what is told of it, worth little."""
        notes = []
        for split in self.aim.splits:
            keys = {example.key for each in self.evaluations for example in each.examples if example.split == split}
            for half in HALVES[1:]:
                count = sum(half_of(key) == half for key in keys)
                if count < FEW:
                    notes.append(
                        f"the {half} half of {split} has {numbered(count, 'problem')}: by so few, little can be told "
                        "apart; score more (`n`, `--n`)"
                    )
        return tuple(notes)

    def json(self) -> dict[str, Any]:
        """What would be done, as plain data."""
        return {
            "name": self.sweep.name,
            "models": {role: str(model) for role, model in self.models.items()},
            "examples": dict(self.examples),
            "notes": [*self.notes],
            "variants": [
                {
                    "name": work.name,
                    "kind": work.candidate.kind,
                    "recipe": work.candidate.recipe.name,
                    "parameters": dict(work.candidate.parameters),
                    "models": dict(work.candidate.models),
                    "bytes_written": work.nbytes,
                    "flops": sum(map(work.plan.flops, work.plan.tensors)),
                }
                for work in self.works
            ],
        }


def bind(
    sweep: Sweep, source: Source, models: Mapping[str, Model], candidates: Sequence[Candidate],
    evaluations: Sequence[Evaluation], device: str,
) -> Bound:  # fmt: skip
    """Plan every candidate from the models' headers. Raises SweepError with all that does not fit."""
    aim = Aim(sweep.start, evaluations[0].splits, sweep.objective)
    faults = [*_unknown_splits(aim, source), *_too_few(aim, evaluations)]
    opened: dict[str, Checkpoint] = {}
    found: dict[str, Checkpoint] = {}  # by path: what a model with two roles decomposes is shared
    for role, model in models.items():
        try:
            if str(model) not in found:
                found[str(model)] = open_checkpoint(model)
            opened[role] = found[str(model)]
        except SurgeryError as error:
            faults.append(Fault(f"model `{role}`", str(error)))
    planned = []
    for candidate in candidates:
        if all(model in opened for model in candidate.models.values()):
            try:
                plan = make_plan(candidate.recipe, {role: opened[name] for role, name in candidate.models.items()})
            except SurgeryError as error:
                inner = error.faults if isinstance(error, Faults) else (Fault("", str(error)),)
                faults += [Fault(f"`{candidate.name}`", str(fault)) for fault in inner]
            else:
                planned.append((candidate, plan))
    if faults:
        raise SweepError(faults)
    return Bound(sweep, models, tuple(_works(planned, models, device)), tuple(evaluations), aim)


def _works(
    planned: Sequence[tuple[Candidate, Plan]], models: Mapping[str, Model], device: str
) -> Iterator[Work]:  # fmt: skip
    """Each in a directory named for it; for those that would have the same name, with a part of the key behind it."""
    labels = Counter(_place(candidate.name) for candidate, _ in planned)
    batch = Batch([plan for _, plan in planned])
    for i, (candidate, plan) in enumerate(planned):
        key = digest_of(identity(plan.hash, plan.inputs, device))
        place = _place(candidate.name)
        if labels[place] > 1:
            place = f"{place}-{digest_of([key, candidate.name])[:8]}"
        roles = {role: models[model] for role, model in candidate.models.items()}
        yield Work(candidate, plan, roles, key, batch.others(i), place)


def _place(name: str) -> str:
    """The name as a directory's; on some disks upper and lower case are the same, and `.` may begin an ending."""
    return label(name).replace(".", "_").lower()


def digest_of(data: object) -> str:
    """A digest of plain data."""
    return blake3(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


def _unknown_splits(aim: Aim, source: Source) -> Iterator[Fault]:
    improve, tolerate = aim.objective.improve, aim.objective.tolerate
    improved = [improve] if isinstance(improve, str) else improve or ()
    named = [("improve", split) for split in improved] + [("tolerate", split) for split in tolerate]
    for key, split in named:
        if split not in aim.splits:
            message = f"{show(split)} is not among the splits that are scored: {quoted(aim.splits)}"
            yield Fault(source.where(("objective", key, split)), message)


def _too_few(aim: Aim, evaluations: Sequence[Evaluation]) -> Iterator[Fault]:
    """Splits whose examples leave nothing for one of the halves."""
    for split in aim.splits:
        keys = [example.key for each in evaluations for example in each.examples if example.split == split]
        for half in empty_halves(keys):
            leave = "leaves" if len(keys) == 1 else "leave"
            found = f"its {numbered(len(keys), 'example')} {leave} nothing for the {half} half"
            yield Fault(f"split `{split}`", f"{found}; score more (`n`, `--n`)")
