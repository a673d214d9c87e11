"""What the stages of a pipeline leave, made up with known numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.stats import Estimate
from trainers.reproduce.loading import load
from trainers.reproduce.pipeline import Pipeline
from trainers.reproduce.records import Record, Records

HALF = 0.04  # of every interval of hands
MODELS = {"base": "base", "inter": "sft/inter-sft", "sft": "sft/final", "rl": "ppo", "control": "control"}
# ID and OOD accuracy of seed 0; every later seed has a point more in all of them but SFT, which stays.
SCORES = {"base": (0.30, 0.31), "inter": (0.36, 0.32), "sft": (0.34, 0.12), "rl": (0.39, 0.18), "control": (0.36, 0.13)}
EDITS: Sequence[tuple[str, Mapping[str, Any], str, float, float]] = (
    ("restore-top-20pct", {"head": "5%"}, "base", 0.01, 0.01),
    ("restore-top-20pct", {"head": "20%"}, "base", 0.13, 0.06),
    ("restore-top-20pct", {"head": "all"}, "base", 0.22, 0.27),
    ("restore-top-20pct-rotate", {"head": "5%"}, "base", 0.35, 0.17),
    ("restore-top-20pct-rotate", {"head": "20%"}, "base", 0.32, 0.21),
    ("restore-layer-band", {"layers": "0-1"}, "base", 0.33, 0.14),
    ("restore-layer-band", {"layers": "2-3"}, "base", 0.31, 0.16),
    ("reset-first-quarter", {"layers": "first 25%"}, "base", 0.32, 0.15),
    ("values-only", {}, "base", 0.34, 0.11),
    ("wise-ft", {"alpha": 0.25}, "base", 0.37, 0.29),
    ("wise-ft", {"alpha": 0.5}, "base", 0.36, 0.25),
    ("wise-ft", {"alpha": 0.75}, "base", 0.36, 0.19),
)


def pipeline(**changes: Any) -> Pipeline:
    """A pipeline whose stages make what is made up here."""
    stages = [
        {"name": name, "title": f"makes {name}", "run": ["train", "sft", "x", "--out", name], "makes": name}
        for name in ("base", "sft", "ppo", "control")
    ]
    stages += [
        {"name": "scores", "title": "scores", "run": ["eval", "t", "sft/final", "--out", "scores"], "makes": "scores"},
        {"name": "edits", "title": "edits", "run": ["sweep", "s", "base", "sft", "--out", "edits"], "makes": "edits"},
        {"name": "swap", "title": "swap", "run": ["sweep", "s", "sft", "ppo", "--out", "swap"], "makes": "swap"},
    ]
    experiment = {
        "title": "made up",
        "models": MODELS,
        "learned": {"rl": "sft", "control": "sft"},
        "controls": ["control"],
        "losses": "sft",
        "scores": "scores",
        "sweeps": ["edits", "swap"],
    }
    content = {
        "name": "made-up",
        "summary": "Numbers that are known.",
        "shows": ["How a report looks."],
        "limits": ["Anything else."],
        "stages": stages,
        "experiments": [experiment],
    }
    return load({**content, **changes})


def shifted(name: str, seed: int, value: float) -> float:
    """An accuracy under a seed."""
    return value if name == "sft" else value + 0.01 * seed


def write_seed(out: Path, seed: int, sweeps: bool = True, scores: bool = True) -> None:
    """What all stages of a seed leave, or some of them."""
    directory = out / f"seed-{seed}"
    _write(directory / "sft" / "report.json", {"best": 40})
    rows = [
        {"step": step, "loss": 1 / step, "id_loss": 0.5, "ood_loss": 0.4 + abs(step - 40) / 100}
        for step in (20, 40, 60)
    ]
    (directory / "sft" / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 80, "lo')
    accuracies = {name: [shifted(name, seed, value) for value in both] for name, both in SCORES.items()}
    if scores:
        _write(directory / "scores" / "t" / "answers-0" / "report.json", _evaluation(accuracies))
    if sweeps:
        edits = [(*edit[:3], *(shifted("edit", seed, value) for value in edit[3:])) for edit in EDITS]
        _write(directory / "edits" / "report.json", _sweep("sft", accuracies, ("base", "inter", "sft"), edits))
        swaps = [("rl-with-sft-directions", {}, "rl", 0.36, 0.13 + 0.01 * seed)]
        _write(directory / "swap" / "report.json", _sweep("rl", accuracies, ("sft", "rl"), swaps))


def write_records(made: Pipeline, out: Path, seed: int, failed: str = "") -> None:
    """That the stages ran, 60 s each; one may have failed."""
    with Records(out / f"seed-{seed}") as records:
        for stage in made.stages:
            (records.directory / stage.makes).mkdir(exist_ok=True)
            digest = made.digest(stage, seed)
            bad = Record("failed", digest, 60.0, "the device's memory does not suffice")
            records.put(stage.name, bad if stage.name == failed else Record("finished", digest, 60.0))


def estimate(value: float, half: float = HALF) -> dict[str, Any]:
    """As `Estimate.json` writes it."""
    return Estimate(value, value - half, value + half, 400).json()


def difference(value: float) -> dict[str, Any]:
    """As `Difference.json` writes it."""
    return {**estimate(value), "p": 0.5, "adjusted": None}


def _evaluation(accuracies: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    names = list(accuracies)
    return {
        "task": "t",
        "settings": {"part": "test", "engine": "transformers", "seed": 0},
        "models": [
            {
                "model": MODELS[name],
                "scores": {
                    split: {"accuracy": estimate(value)} for split, value in zip(("id", "ood"), both, strict=True)
                },
            }
            for name, both in accuracies.items()
        ],
        "pairs": [
            {
                "split": split,
                "first": MODELS[first],
                "second": MODELS[second],
                "differences": {"accuracy": difference(accuracies[second][i] - accuracies[first][i])},
            }
            for i, split in enumerate(("id", "ood"))
            for place, first in enumerate(names)
            for second in names[place + 1 :]
        ],
    }


def _sweep(
    start: str, accuracies: Mapping[str, Sequence[float]], models: Sequence[str], edits: Sequence[tuple[Any, ...]]
) -> dict[str, Any]:
    rows = [_row(name, "model", None, {}, {}, accuracies[name], accuracies[start]) for name in models]
    for recipe, parameters, donor, *both in edits:
        roles = {"sft": "sft", "rl": "rl"} if start == "rl" else {"base": donor, "sft": "sft"}
        kind = "baseline" if recipe == "wise-ft" else "variant"
        name = " ".join([recipe, *(f"{key}={value}" for key, value in parameters.items())])
        rows.append(_row(name, kind, recipe, parameters, roles, both, accuracies[start]))
    return {"name": "made-up", "start": start, "splits": ["id", "ood"], "settings": {"task": "t"}, "rows": rows}


def _row(
    name: str,
    kind: str,
    recipe: str | None,
    parameters: Mapping[str, Any],
    models: Mapping[str, str],
    both: Sequence[float],
    start: Sequence[float],
) -> dict[str, Any]:
    scores = dict(zip(("id", "ood"), both, strict=True))
    changes = {split: difference(scores[split] - first) for split, first in zip(("id", "ood"), start, strict=True)}
    own = all(math.isclose(change["value"], 0) for change in changes.values()) and kind == "model"
    return {
        "name": name,
        "kind": kind,
        "recipe": recipe,
        "parameters": dict(parameters),
        "models": dict(models),
        "scores": {"all": {split: estimate(value) for split, value in scores.items()}},
        "to_start": {} if own else {"all": changes},
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
