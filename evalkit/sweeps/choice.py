"""Compares the rows of a sweep, and chooses: on one half of the examples, without a look at the other."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evalkit.stats import Difference, Estimate
from evalkit.summary import Comparison, Scored, adjusted, compare, score
from evalkit.sweeps.halves import HALVES, Half, restricted
from evalkit.sweeps.result import Differences, Kind, Row, Scores
from evalkit.sweeps.spec import Objective, sign_of

ROUNDING = 1e-12  # by so much a tolerated loss may be passed: 0.30 - 0.28 is more than 0.02

BySplit = Mapping[str, Estimate]


@dataclass(frozen=True)
class Entry:
    """A model or a variant, what is known of it, and by that its scores."""

    name: str
    kind: Kind
    scored: Scored
    scores: Scores
    recipe: str | None = None
    summary: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    edited: str | None = None


@dataclass(frozen=True)
class Aim:
    """What is wanted: the measure, a weight for each split, and what each may lose against `start`."""

    start: str
    splits: tuple[str, ...]
    objective: Objective

    @property
    def measure(self) -> str:
        """The measure."""
        return self.objective.measure

    @property
    def sign(self) -> int:
        """-1 where less is better."""
        return sign_of(self.measure)

    @property
    def weights(self) -> dict[str, float]:
        """What each split counts, 1 in all."""
        improve = self.objective.improve
        if improve is None:
            improve = dict.fromkeys(self.splits, 1.0)
        weights = {improve: 1.0} if isinstance(improve, str) else improve
        return {split: weight / math.fsum(weights.values()) for split, weight in weights.items() if weight}

    def value(self, scores: BySplit) -> float:
        """The larger, the better; nan where a score is not known."""
        return math.fsum(weight * self.sign * scores[split].value for split, weight in self.weights.items())

    def allows(self, scores: BySplit, start: BySplit) -> bool:
        """Whether no split is worse than `start`'s by more than is tolerated."""
        return all(
            self.sign * (scores[split].value - start[split].value) >= -tolerated - ROUNDING
            for split, tolerated in self.objective.tolerate.items()
        )


def scores_of(scored: Scored, aim: Aim) -> Scores:
    """The measure on all examples and on each half, by split."""
    found: dict[Half, dict[str, Estimate]] = {}
    for half in HALVES:
        part = restricted(scored, half)
        found[half] = {}
        for split in aim.splits:
            samples = [sample for sample in part.samples if sample.split == split]
            losses = [loss for loss in part.losses if loss.split == split]
            found[half][split] = getattr(score(samples, losses), aim.measure)
    return found


def choose(selection: Mapping[str, BySplit], models: Collection[str], aim: Aim) -> str:
    """The variant with the largest objective among those that are allowed; `start` where none is better than it.

    Of equals the first is taken, and `start` before them. `selection` holds the scores on the selection half alone,
    those of `models`, from which none is taken but `start`, among them.
    """
    start = selection[aim.start]
    variants = [name for name in selection if name not in models and aim.allows(selection[name], start)]
    return max([aim.start, *variants], key=lambda name: _or_least(aim.value(selection[name])))


def pareto(scores: Mapping[str, BySplit], aim: Aim) -> set[str]:
    """The names of those that no other is as good as on every split and better than on one.

    Not those of which a score is not known.
    """
    points = {name: tuple(aim.sign * found[split].value for split in aim.splits) for name, found in scores.items()}
    points = {name: point for name, point in points.items() if not any(map(math.isnan, point))}
    distinct = set(points.values())
    return {name for name, point in points.items() if not any(_beats(other, point) for other in distinct)}


def make_rows(entries: Sequence[Entry], aim: Aim) -> list[Row]:
    """A row for each entry, `aim.start` among them, with the best and the Pareto-optimal ones marked."""
    selection = {entry.name: entry.scores["selection"] for entry in entries}
    best = choose(selection, {entry.name for entry in entries if entry.kind == "model"}, aim)
    optimal = pareto({entry.name: entry.scores["all"] for entry in entries}, aim)
    differences = _differences(entries, aim)
    return [
        Row(
            name=entry.name,
            kind=entry.kind,
            digest=entry.scored.model.digest,
            recipe=entry.recipe,
            summary=entry.summary,
            parameters=entry.parameters,
            models=entry.models,
            edited=entry.edited,
            scores=entry.scores,
            to_start=differences.get(entry.name, {}),
            objective=aim.value(entry.scores["selection"]),
            allowed=aim.allows(entry.scores["selection"], selection[aim.start]),
            pareto=entry.name in optimal,
            best=entry.name == best,
        )
        for entry in entries
    ]


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _beats(other: tuple[float, ...], point: tuple[float, ...]) -> bool:
    return other != point and all(a >= b for a, b in zip(other, point, strict=True))


def _differences(entries: Sequence[Entry], aim: Aim) -> Mapping[str, Differences]:
    """Of every other entry from `start`; p-values are corrected for all of a half."""
    start = next(entry for entry in entries if entry.name == aim.start)
    others = [entry for entry in entries if entry.name != start.name]
    found: dict[str, dict[Half, dict[str, Difference]]] = {entry.name: {} for entry in others}
    for half in HALVES:
        first = restricted(start.scored, half)
        compared: list[Comparison] = []
        for entry in others:
            second = restricted(entry.scored, half)
            for split in aim.splits:
                comparison = compare(first, second, split)
                only = {aim.measure: comparison.differences[aim.measure]}
                compared.append(replace(comparison, differences=only))
        corrected = iter(adjusted(compared))
        for entry in others:
            found[entry.name][half] = {split: next(corrected).differences[aim.measure] for split in aim.splits}
    return found
