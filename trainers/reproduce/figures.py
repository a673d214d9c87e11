"""The paper's figures from the seeds' results, as PNG and SVG."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import OutputError
from surgery.plotting import FORMATS, LOOKS, plain
from trainers.plots import LOSSES, plot_losses
from trainers.reproduce.across import Across
from trainers.reproduce.charts import GREY, SPLITS, Level, Line, draw_bars, draw_lines
from trainers.reproduce.paper import BAND, FIRST, ON_RL, ON_SFT, PUBLISHED, ROTATE
from trainers.reproduce.pipeline import BASE, RL, SFT, Experiment
from trainers.reproduce.results import EditRow, Results
from trainers.reproduce.standing import seed_directory

SPECTRAL = {"singular_values": "figure-3", "principal_angles": "figure-4", "gauge": "figure-a"}  # of `surgery diff`
_LEVELS = (
    "Horizontal lines: SFT before the edit, and the best plain average, which was chosen on these problems and so is "
    "flattered."
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure: its number in the paper, its file without an ending, and what it shows."""

    number: str
    path: Path
    title: str
    text: str


def draw_all(results: Results, out: Path, base: Path, prefix: str) -> list[Drawn]:
    """Every figure for which there are data; names of files begin with `prefix`. Raises OutputError.

    `base` is the pipeline's directory, whose spectral comparisons the figures 3, 4 and A are taken from.
    """
    found = [_models(results, out, prefix), _losses(results, out, prefix)]
    found += _spectral(results, out, base, prefix)
    found += [_layers(results, out, prefix), _ranks(results, out, prefix), _swap(results, out, prefix)]
    return sorted((each for each in found if each is not None), key=lambda each: each.number)


def _models(results: Results, out: Path, prefix: str) -> Drawn | None:
    """Figure 1: every checkpoint, what it learned on from standing left of it."""
    bars = {split: [(name, results.score(name, split)) for name in _in_order(results.experiment)] for split in SPLITS}
    looks = {name: _look_of(name, results) for name in results.experiment.models}
    path = draw_bars(bars, {name: _label(name, results) for name in looks}, looks, out, f"{prefix}figure-1")
    if path is None:
        return None
    text = (
        "Accuracy of each checkpoint on problems that no stage learned from. Hatched: RL; dotted: more SFT on the same "
        "problems instead; both began with the plain bar left of them."
    )
    return Drawn("1", path, "Inter-SFT, SFT and RL", f"{text} {_reading(results)}")


def _in_order(experiment: Experiment) -> list[str]:
    """Models, those that learned on from one of them behind it."""
    children: dict[str, list[str]] = defaultdict(list)
    for child, parent in experiment.learned.items():
        children[parent].append(child)
    found: list[str] = []
    for name in experiment.models:
        found += [each for each in (name, *children[name]) if each not in found and _is_due(each, name, experiment)]
    return found


def _is_due(each: str, name: str, experiment: Experiment) -> bool:
    """A child waits for its parent."""
    return each != name or each not in experiment.learned


def _look_of(name: str, results: Results) -> tuple[str, str]:
    """Colour and hatching of a bar: RL, its controls, and what fine-tuning made."""
    experiment = results.experiment
    if name in experiment.controls:
        return LOOKS[6].colour, "..."
    if name == RL or name in experiment.learned:
        return LOOKS[2].colour, "///"
    return (GREY, "") if name == BASE else (LOOKS[1].colour, "")


def _label(name: str, results: Results) -> str:
    return plain(results.title(name), 18)


def _losses(results: Results, out: Path, prefix: str) -> Drawn | None:
    """Figure 2: the trainers' own, of the mean over seeds."""
    logs = [seed.losses for seed in results.seeds if seed.losses]
    steps = [seed.best_step for seed in results.seeds if seed.best_step is not None]
    if not logs:
        return None
    rows = mean_rows(logs)
    written = plot_losses(rows, steps[0] if len(set(steps)) == 1 else None, out)
    if not written:
        return None
    path = out / f"{prefix}figure-2"
    for kind in FORMATS:
        (out / f"{LOSSES}.{kind}").replace(path.with_suffix(f".{kind}"))
    marked = f"Inter-SFT is the checkpoint after step {' / '.join(map(str, dict.fromkeys(steps)))}." if steps else ""
    seeds = f"Means over {len(logs)} seeds. " if len(logs) > 1 else ""
    return Drawn("2", path, "Losses while fine-tuning", f"{seeds}Held-out problems of the validation part. {marked}")


def mean_rows(logs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One log: at each step that all have, the mean over logs of each figure that all have there."""
    merged = []
    for log in logs:
        by_step: dict[int, dict[str, Any]] = defaultdict(dict)
        for row in log:
            by_step[row["step"]].update({name: value for name, value in row.items() if value is not None})
        merged.append(by_step)
    found = []
    for step in sorted(set.intersection(*(set(each) for each in merged))):
        names = set.intersection(*(set(each[step]) for each in merged)) - {"step"}
        figures = {name: math.fsum(each[step][name] for each in merged) / len(merged) for name in sorted(names)}
        found.append({"step": step, **figures})
    return found


def _spectral(results: Results, out: Path, base: Path, prefix: str) -> list[Drawn | None]:
    """Figures 3, 4 and A: those that `surgery diff` drew of the first seed that has a comparison."""
    texts = {
        "singular_values": (
            "3", "Singular values before and after",
            "Query, key and value projections of three layers, and below how the values differ.",
        ),
        "principal_angles": (
            "4", "Principal angles, first layer",
            "Angles between the leading singular subspaces before and after, in ascending order.",
        ),
        "gauge": (
            "A", "How much of it is a gauge",
            "What a rotation of the space between value and output projections explains of their change.",
        ),
    }  # fmt: skip
    found: list[Drawn | None] = []
    for name, (number, title, text) in texts.items():
        for seed in results.seeds:
            place = seed.comparison
            source = seed_directory(base, seed.seed) / (place or "") / "figures" / name
            if place is not None and source.with_suffix(".png").is_file():
                path = out / f"{prefix}{SPECTRAL[name]}"
                _copy(source, path)
                note = f"Seed {seed.seed}; all of it in {seed_directory(base, seed.seed).name}/{place}/report.html."
                found.append(Drawn(number, path, title, f"{text} {note}"))
                break
    return found


def _copy(source: Path, path: Path) -> None:
    try:
        for kind in FORMATS:
            if source.with_suffix(f".{kind}").is_file():
                shutil.copyfile(source.with_suffix(f".{kind}"), path.with_suffix(f".{kind}"))
    except OSError as error:
        raise OutputError(f"cannot write the figure `{path}`: {error.strerror or error}; make room") from error


def _layers(results: Results, out: Path, prefix: str) -> Drawn | None:
    """Figure 5: bands of layers."""
    series = []
    for donor in results.donors:
        for recipe, words in ((BAND, "directions of"), (FIRST, "copied from")):
            rows = _edits_of(results, recipe, donor)
            series.append((f"{words} {_label(donor, results)}", rows, "layers"))
    text = f"Accuracy after the singular directions of a band of layers are put back, or its weights copied. {_LEVELS}"
    return _lines(results, series, "layers", out, f"{prefix}figure-5", ("5", "Bands of layers", text))


def _ranks(results: Results, out: Path, prefix: str) -> Drawn | None:
    """Figure 6: leading directions."""
    series = []
    for donor in results.donors:
        for recipe, words in ((PUBLISHED, "as published"), (ROTATE, "orthonormal")):
            rows = [row for row in _edits_of(results, recipe, donor) if "layers" not in row.edit.parameters]
            series.append((f"{_label(donor, results)}, {words}", rows, "head"))
    text = (
        "Accuracy after the leading singular directions are put back: the published formula, and with factors that "
        f"stay orthonormal (`rotate`). {_LEVELS}"
    )
    return _lines(results, series, "leading directions", out, f"{prefix}figure-6", ("6", "Leading directions", text))


def _edits_of(results: Results, recipe: str, donor: str) -> list[EditRow]:
    return [row for row in results.edits if row.edit.recipe == recipe and (row.donor, row.edited) == (donor, SFT)]


def _lines(
    results: Results,
    series: Sequence[tuple[str, Sequence[EditRow], str]],
    axis: str,
    out: Path,
    name: str,
    about: tuple[str, str, str],
) -> Drawn | None:
    """Edits by the values of one parameter, in the order of the sweep, beside SFT and averages."""
    lines = []
    for label, rows, key in series:
        shown = [(row.edit.parameters[key], row.scores) for row in rows if key in row.edit.parameters]
        if shown:
            points = {s: [(tick, scores[s]) for tick, scores in shown if s in scores] for s in SPLITS}
            lines.append(Line(label, points))
    if not lines:
        return None
    number, title, text = about
    path = draw_lines(lines, _levels(results), axis, out, name)
    return Drawn(number, path, title, f"{text} {_reading(results)}")


def _levels(results: Results) -> list[Level]:
    """SFT, and the best average with each donor."""
    found = {split: score for split in SPLITS if (score := results.score(SFT, split)) is not None}
    levels = [Level("SFT", found, "black", "-")]
    for donor, dashes in zip(results.donors, (":", (0, (4, 2, 1, 2))), strict=False):
        row = results.best_average(donor)
        if row is not None:
            label = f"average with {_label(donor, results)} ({row.edit.parameters.get('alpha', '')})"
            levels.append(Level(label, row.scores, GREY, dashes))
    return levels


def _swap(results: Results, out: Path, prefix: str) -> Drawn | None:
    """Figure 7: values of one model on directions of the other."""
    rows = {recipe: results.find(recipe) for recipe in (ON_SFT, ON_RL)}
    if not any(rows.values()):
        return None
    labels = {SFT: "SFT", RL: "RL", ON_SFT: "RL values,\nSFT directions", ON_RL: "SFT values,\nRL directions"}
    bars: dict[str, list[tuple[str, Across | None]]] = {}
    for split in SPLITS:
        edited = [(recipe, row.scores.get(split)) for recipe, row in rows.items() if row is not None]
        bars[split] = [(name, results.score(name, split)) for name in (SFT, RL)] + edited
    looks = {SFT: (LOOKS[1].colour, ""), RL: (LOOKS[2].colour, "///"), ON_SFT: (LOOKS[1].colour, "///")}
    path = draw_bars(bars, labels, {**looks, ON_RL: (LOOKS[2].colour, "")}, out, f"{prefix}figure-7")
    assert path is not None
    text = "If directions carry what RL did, RL on SFT's directions falls to SFT, and SFT on RL's rises to RL."
    return Drawn("7", path, "Values and directions of SFT and RL, swapped", f"{text} {_reading(results)}")


def _reading(results: Results) -> str:
    """What the intervals in a figure are."""
    n = len(results.seeds)
    if n == 1:
        return "Bars: 95 % intervals of the problems of this one seed, which say nothing about other seeds."
    return f"Bars: 95 % intervals over {n} seeds (Student's t), never narrower than their problems allow."
