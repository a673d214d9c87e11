"""What all seeds of an experiment come to: scores, differences, edits and shares, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from evalkit.stats import Estimate
from trainers.reproduce.across import Across, across, share
from trainers.reproduce.collect import Edit, SeedResults
from trainers.reproduce.pipeline import BASE, INTER, RL, SFT, Experiment

ID, OOD = "id", "ood"
AVERAGE = "wise-ft"
REFERENCE = "0.5"  # the average that stands for averaging: named beforehand, so that no choice flatters it
_TITLES = {BASE: "base", INTER: "Inter-SFT", SFT: "SFT", RL: "RL"}


@dataclass(frozen=True, slots=True)
class EditRow:
    """An edit over seeds. `donor` is the model that it puts back or adds, `edited` the one that it changes.

    `changes` are against `start`, `beyond_average` out of distribution against the plain average of the same two models
    with equal weights, `recovered` the share of what SFT lost that it gives back.
    """

    edit: Edit
    scores: Mapping[str, Across]
    changes: Mapping[str, Across]
    beyond_average: Across | None
    recovered: Across | None

    @property
    def name(self) -> str:
        """As the sweep calls it."""
        return self.edit.name

    @property
    def donor(self) -> str:
        """The model besides the edited one."""
        others = [model for role, model in self.edit.models.items() if role != self.edit.edited]
        return others[0] if others else ""

    @property
    def edited(self) -> str:
        """The model that the edit begins with."""
        return self.edit.models.get(self.edit.edited, "")

    @property
    def averages(self) -> bool:
        """Whether it is a plain average."""
        return self.edit.recipe == AVERAGE

    def json(self) -> dict[str, Any]:
        """As plain data."""
        optional = {"beyond_average": self.beyond_average, "recovered": self.recovered}
        return {
            "name": self.name,
            "sweep": self.edit.sweep,
            "recipe": self.edit.recipe,
            "parameters": dict(self.edit.parameters),
            "models": dict(self.edit.models),
            "start": self.edit.start,
            "scores": {split: found.json() for split, found in self.scores.items()},
            "changes": {split: found.json() for split, found in self.changes.items()},
            **{name: None if found is None else found.json() for name, found in optional.items()},
        }


@dataclass(frozen=True)
class Results:
    """An experiment and what its seeds gave."""

    experiment: Experiment
    seeds: Sequence[SeedResults]

    def title(self, model: str) -> str:
        """A model's name as the paper has it, or what was done to which other."""
        parent = self.experiment.learned.get(model)
        if model in _TITLES or parent is None or model in self.experiment.controls:
            return _TITLES.get(model, model)
        return f"RL after {self.title(parent)}"

    def score(self, model: str, split: str) -> Across | None:
        """Accuracy of a model."""
        found = [seed.scores[model][split] for seed in self.seeds if split in seed.scores.get(model, {})]
        return across(found, (0.0, 1.0))

    def difference(self, first: str, second: str, split: str) -> Across | None:
        """The second model's accuracy less the first's, on the same problems."""
        return across([found for seed in self.seeds if (found := _difference(seed, first, second, split))], (-1.0, 1.0))

    @cached_property
    def lost(self) -> Across | None:
        """How much better out of distribution the best SFT checkpoint is than the last."""
        return self.difference(SFT, INTER, OOD)

    def recovered(self, model: str) -> Across | None:
        """The share of that which a model has more than SFT."""
        pairs = [
            (gain, loss)
            for seed in self.seeds
            if (gain := _difference(seed, SFT, model, OOD)) and (loss := _difference(seed, SFT, INTER, OOD))
        ]
        return share([gain for gain, _ in pairs], [loss for _, loss in pairs])

    @cached_property
    def edits(self) -> tuple[EditRow, ...]:
        """Every edit that some seed has, in the order of the sweeps."""
        found: dict[tuple[str, str], list[tuple[SeedResults, Edit]]] = {}
        for seed in self.seeds:
            for edit in seed.edits:
                found.setdefault((edit.sweep, edit.name), []).append((seed, edit))
        return tuple(map(self._row, found.values()))

    def find(self, recipe: str, start: str = "", donor: str = "", **parameters: str) -> EditRow | None:
        """The first edit of a recipe with those parameters; others of its parameters have any value."""
        for row in self.edits:
            same = all(row.edit.parameters.get(name, value) == value for name, value in parameters.items())
            if row.edit.recipe == recipe and same and start in ("", row.edit.start) and donor in ("", row.donor):
                return row
        return None

    @cached_property
    def donors(self) -> tuple[str, ...]:
        """The models that edits of SFT put back, in the order of `models`."""
        named = {row.donor for row in self.edits if row.edited == SFT and row.donor not in ("", RL)}
        return tuple(model for model in self.experiment.models if model in named)

    def best_average(self, donor: str) -> EditRow | None:
        """The average of SFT and a donor that is best out of distribution on these problems, which flatters it."""
        rows = [row for row in self.edits if row.averages and row.donor == donor and row.edited == SFT]
        return max(rows, key=lambda row: row.scores[OOD].value, default=None)

    def geometry(self, name: str) -> Across | None:
        """One of the figures of `Geometry`."""
        values = [getattr(seed.geometry, name) for seed in self.seeds if seed.geometry is not None]
        return across([Estimate(value, -math.inf, math.inf, 1) for value in values])

    def _row(self, found: Sequence[tuple[SeedResults, Edit]]) -> EditRow:
        edits = [edit for _, edit in found]
        splits = [*dict.fromkeys(split for edit in edits for split in edit.scores)]
        scores = {
            split: across([edit.scores[split] for edit in edits if split in edit.scores], (0, 1)) for split in splits
        }
        changes = {
            split: across([edit.changes[split] for edit in edits if split in edit.changes], (-1, 1)) for split in splits
        }
        row = EditRow(
            edit=edits[0],
            scores={split: each for split, each in scores.items() if each is not None},
            changes={split: each for split, each in changes.items() if each is not None},
            beyond_average=None,
            recovered=None,
        )
        recovered = None
        if row.edited == SFT and edits[0].start == SFT:
            pairs = [
                (edit.changes[OOD], loss)
                for seed, edit in found
                if OOD in edit.changes and (loss := _difference(seed, SFT, INTER, OOD))
            ]
            recovered = share([gain for gain, _ in pairs], [loss for _, loss in pairs])
        return replace(row, recovered=recovered, beyond_average=None if row.averages else _beyond(row, found))


def _beyond(row: EditRow, found: Sequence[tuple[SeedResults, Edit]]) -> Across | None:
    """Out of distribution, less the average of the same two models, of the same sweep where it has one."""
    single = []
    for seed, edit in found:
        averages = [
            other
            for other in seed.edits
            if other.recipe == AVERAGE
            and other.parameters.get("alpha") == REFERENCE
            and {*other.models.values()} == {row.donor, row.edited}
        ]
        averages.sort(key=lambda other: other.sweep != edit.sweep)
        if averages and OOD in edit.scores:
            value = edit.scores[OOD].value - averages[0].scores[OOD].value
            single.append(Estimate(value, -math.inf, math.inf, 1))
    return across(single)


def _difference(seed: SeedResults, first: str, second: str, split: str) -> Estimate | None:
    """Of one seed: paired where the pair was compared, otherwise of the scores, and then without an interval."""
    forth, back = seed.differences.get((first, second), {}), seed.differences.get((second, first), {})
    if split in forth:
        return forth[split]
    if split in back:
        found = back[split]
        return Estimate(-found.value, -found.high, -found.low, found.n)
    scores = [seed.scores.get(model, {}).get(split) for model in (first, second)]
    if scores[0] is None or scores[1] is None:
        return None
    return Estimate(scores[1].value - scores[0].value, -math.inf, math.inf, scores[0].n)
