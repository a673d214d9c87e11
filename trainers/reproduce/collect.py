"""Reads what the stages of one seed have left; what is not there is missing, and no error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalkit.figures import settings_line
from evalkit.stats import Estimate
from surgery.errors import SurgeryError
from trainers.directory import LOG, REPORT
from trainers.reproduce.pipeline import Experiment, within

if TYPE_CHECKING:
    from surgery.analysis.comparison import Comparison

Scores = Mapping[str, Estimate]  # by split
_QKV = ("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn")


@dataclass(frozen=True)
class Edit:
    """A variant of a sweep. `models` maps the roles of its recipe to the experiment's models, `edited` is the role that
    it begins with (in reports of before that was written, the last one).

    `scores` are its own, `changes` those less the scores of the model `start`, on the same problems.
    """

    sweep: str
    name: str
    recipe: str
    summary: str
    parameters: Mapping[str, str]
    models: Mapping[str, str]
    edited: str
    start: str
    scores: Scores
    changes: Scores


@dataclass(frozen=True)
class Geometry:
    """From the comparison of base and SFT: how far singular values moved, and the angles between singular subspaces.

    `values` is the largest absolute difference of singular values of the query, key and value projections,
    `values_share` the median relative change of all matrices' values. `least` and `most` are the smallest and the
    largest principal angle of those projections of the first layer at the rank `rank`, means over them, and `rotation`
    the median over all matrices of their mean angle; degrees. `moved_back` is the share of the change that RL undid.
    """

    rank: str
    values: float
    values_share: float
    least: float
    most: float
    rotation: float
    moved_back: float


@dataclass(frozen=True)
class SeedResults:
    """All that is known of an experiment under one seed."""

    seed: int
    scores: Mapping[str, Scores] = field(default_factory=dict)
    differences: Mapping[tuple[str, str], Scores] = field(default_factory=dict)  # the second less the first
    edits: tuple[Edit, ...] = ()
    losses: Sequence[Mapping[str, Any]] = ()
    best_step: int | None = None
    geometry: Geometry | None = None
    settings: tuple[str, ...] = ()
    comparison: str | None = None  # where the one lies that `geometry` is of


def collect(experiment: Experiment, directory: Path, seed: int, stale: Sequence[str] = ()) -> SeedResults:
    """What lies in a seed's directory, without what lies in the places `stale`."""
    experiment = _without(experiment, stale)
    scores, differences, settings = _evaluated(experiment, directory)
    edits: list[Edit] = []
    for sweep in experiment.sweeps:
        content = _read(directory / sweep / REPORT)
        if content is None:
            continue
        edits += _edits(sweep, content)
        asked = content.get("settings", {})
        settings = [*settings, _asked(str(asked.get("task", "")), asked)]
        for name, found, changes in _models(content):
            scores.setdefault(name, found)
            if changes:
                differences.setdefault((content["start"], name), changes)
    run = None if experiment.losses is None else directory / experiment.losses
    report = None if run is None else _read(run / REPORT)
    return SeedResults(
        seed=seed,
        scores=scores,
        differences=differences,
        edits=tuple(edits),
        losses=[] if run is None else [*_rows(run / LOG)],
        best_step=None if report is None else report.get("best"),
        geometry=None if experiment.comparison is None else _geometry(directory / experiment.comparison),
        settings=tuple(dict.fromkeys(settings)),
        comparison=experiment.comparison,
    )


def _without(experiment: Experiment, stale: Sequence[str]) -> Experiment:
    """An experiment as if nothing lay in some places."""
    gone = {
        key: None
        for key in ("losses", "comparison", "scores")
        if (place := getattr(experiment, key)) is not None and _lies_in(place, stale)
    }
    sweeps = tuple(place for place in experiment.sweeps if not _lies_in(place, stale))
    return experiment.model_copy(update={**gone, "sweeps": sweeps})


def _lies_in(place: str, places: Sequence[str]) -> bool:
    return any(within(place, made) for made in places)


def _evaluated(
    experiment: Experiment, directory: Path
) -> tuple[dict[str, Scores], dict[tuple[str, str], Scores], list[str]]:
    """Models' scores and paired differences, from the last report of `surgery eval`."""
    names = {path: name for name, path in experiment.models.items()}
    scores: dict[str, Scores] = {}
    differences: dict[tuple[str, str], Scores] = {}
    found = [] if experiment.scores is None else [*(directory / experiment.scores).glob(f"*/answers-*/{REPORT}")]
    content = _read(max(found, key=lambda path: path.stat().st_mtime_ns)) if found else None
    if content is None:
        return scores, differences, []
    for row in content["models"]:
        if row["model"] in names:
            accuracy = {split: estimate_of(score["accuracy"]) for split, score in row["scores"].items()}
            scores[names[row["model"]]] = accuracy
    for pair in content["pairs"]:
        ours = tuple(names.get(pair[place], "") for place in ("first", "second"))
        if all(ours) and "accuracy" in pair["differences"]:
            by_split = dict(differences.get((ours[0], ours[1]), {}))
            by_split[pair["split"]] = estimate_of(pair["differences"]["accuracy"])
            differences[ours[0], ours[1]] = by_split
    return scores, differences, [_asked(content["task"], content["settings"])]


def _edits(sweep: str, content: Mapping[str, Any]) -> Iterator[Edit]:
    for row in content["rows"]:
        if row["kind"] == "model":
            continue
        yield Edit(
            sweep=sweep,
            name=row["name"],
            recipe=row["recipe"] or "",
            summary=row.get("summary", ""),
            parameters={key: _text(value) for key, value in row["parameters"].items()},
            models=row.get("models", {}),
            edited=row.get("edited") or next(reversed(row.get("models", {})), ""),
            start=content["start"],
            scores=_all(row["scores"]),
            changes=_all(row["to_start"]),
        )


def _models(content: Mapping[str, Any]) -> Iterator[tuple[str, Scores, Scores]]:
    for row in content["rows"]:
        if row["kind"] == "model":
            yield row["name"], _all(row["scores"]), _all(row["to_start"])


def _all(halves: Mapping[str, Any]) -> Scores:
    """Those of all examples: what is compared here was named beforehand, so that no half is needed to choose on."""
    return {split: estimate_of(found) for split, found in halves.get("all", {}).items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _asked(task: str, settings: Mapping[str, Any]) -> str:
    """What the models were asked, in a line."""
    return f"{task}: {settings_line(settings)}"


def estimate_of(data: Mapping[str, Any]) -> Estimate:
    """What `Estimate.json` has written; None stands for what is not finite."""
    value, low, high = data["value"], data["low"], data["high"]
    return Estimate(
        math.nan if value is None else value,
        -math.inf if low is None else low,
        math.inf if high is None else high,
        data["n"],
    )


def _geometry(directory: Path) -> Geometry | None:
    """From the tables and spectra of a comparison; None where there is none that can be read."""
    if not (directory / "summary.json").is_file():
        return None
    try:
        from surgery.analysis.store import read

        return _measured(read(directory))
    except (SurgeryError, ModuleNotFoundError, KeyError, ValueError):
        return None


def _measured(comparison: Comparison) -> Geometry:
    from surgery.analysis.summary import pair_figures

    base, tuned = comparison.pairs[0]
    rank = comparison.ranks[0]
    names = [str(name) for name in comparison.matrices["matrix"].unique() if _is_qkv(str(name))]
    moved = [
        float(np.abs(comparison.spectra[f"{name}/values/{tuned}"] - comparison.spectra[f"{name}/values/{base}"]).max())
        for name in names
    ]
    first = comparison.matrices[comparison.matrices["layer"] == comparison.matrices["layer"][lambda x: x >= 0].min()]
    angles = [
        np.degrees(comparison.spectra[f"{name}/angles_{side}@{rank}/{base}>{tuned}"])
        for name in first["matrix"].unique()
        if _is_qkv(str(name))
        for side in ("left", "right")
    ]
    figures = pair_figures(comparison, (base, tuned))
    back = pair_figures(comparison, comparison.pairs[1])["moved_back"] if len(comparison.pairs) > 1 else None
    return Geometry(
        rank=rank,
        values=max(moved, default=math.nan),
        values_share=_known(figures["values_change_median"]),
        least=float(np.mean([each.min() for each in angles])) if angles else math.nan,
        most=float(np.mean([each.max() for each in angles])) if angles else math.nan,
        rotation=_known(figures["rotation_degrees_median"]),
        moved_back=_known(back),
    )


def _is_qkv(name: str) -> bool:
    return name.removesuffix(".weight").rsplit(".", 1)[-1] in _QKV


def _known(number: float | None) -> float:
    return math.nan if number is None else number


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a run's log; a line that a kill has cut short is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
