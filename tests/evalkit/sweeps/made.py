"""Sweeps that have ended, made of nothing: entries with samples of given shares, and results of them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from evalkit.engines.base import Model
from evalkit.samples import Loss, Sample
from evalkit.summary import Scored
from evalkit.sweeps.choice import Aim, Entry, make_rows, scores_of
from evalkit.sweeps.result import Kind, Row, SweepResult
from evalkit.sweeps.spec import Objective
from evalkit.sweeps.words import words
from evalkit.task import CORRECT, UNPARSABLE, Grade

N = 60
Shares = Mapping[str, float]
HOSTILE = "</script><img src=x onerror=alert(1)>&{{ 7*7 }}\"'$x^2$_|"


def sample(split: str, index: int, correct: bool, key: str | None = None, model: str = "m") -> Sample:
    """An episode of one answer."""
    grade = Grade(CORRECT, 1, "") if correct else Grade(UNPARSABLE, -1, "")
    key = f"{split}{index}" if key is None else key
    return Sample("sums", split, index, key, model, "", ("",), (grade,), grade.reward, correct, 1, 0)


def scored(name: str, shares: Shares, n: int = N, seed: int = 0) -> Scored:
    """A model that solves such shares of the splits; which examples are hard is the same for all models."""
    samples, losses = [], []
    for split, share in shares.items():
        hard = random.Random(f"{split}/{seed}")
        for i in range(n):
            difficulty = hard.random()
            samples.append(sample(split, i, difficulty < share, model=name))
            losses.append(Loss("sums", split, i, f"{split}{i}", name, "", 4 * (1 - share) + difficulty, 2))
    return Scored(Model(name, f"digest-of-{name}"[:16], None), tuple(samples), tuple(losses))


def aim(splits: Sequence[str] = ("id", "ood"), start: str = "sft", **objective: Any) -> Aim:
    """What is wanted."""
    return Aim(start, tuple(splits), Objective(**objective))


def entry(name: str, wanted: Aim, known: Scored, kind: Kind = "variant", recipe: str = "restore") -> Entry:
    """A row of which that is known."""
    if kind == "model":
        return Entry(name, kind, known, scores_of(known, wanted))
    models = {"base": "base", "sft": "sft"}
    return Entry(name, kind, known, scores_of(known, wanted), recipe, f"What {recipe} does.", {"head": "20%"}, models)


def entries(wanted: Aim, variants: Mapping[str, Shares], n: int = N) -> list[Entry]:
    """A base and an SFT checkpoint, and variants with such shares; those called `average...` are averages."""
    known = {
        "base": dict.fromkeys(wanted.splits, 0.4) | {wanted.splits[0]: 0.2},
        "sft": dict.fromkeys(wanted.splits, 0.2) | {wanted.splits[0]: 0.6},
    }
    found = [entry(name, wanted, scored(name, shares, n), "model") for name, shares in known.items()]
    for name, shares in variants.items():
        kind: Kind = "baseline" if name.startswith("average") else "variant"
        found.append(entry(name, wanted, scored(name, shares, n), kind, name.split(" ")[0]))
    return found


VARIANTS = {
    "restore head=20%": {"id": 0.55, "ood": 0.35},
    "restore head=40%": {"id": 0.4, "ood": 0.45},
    "values": {"id": 0.6, "ood": 0.2},
    "average alpha=0.5": {"id": 0.5, "ood": 0.3},
}


def failed(name: str, error: str = "`w`: the result reaches 1e+06") -> Row:
    """The row of a variant that could not be made."""
    recipe = name.split(" ")[0]
    return Row(name, "variant", None, recipe, f"What {recipe} does.", objective=math.nan, allowed=False, error=error)


def result(
    variants: Mapping[str, Shares] = VARIANTS, wanted: Aim | None = None, n: int = N, more: Sequence[Row] = (),
    **changes: Any,
) -> SweepResult:  # fmt: skip
    """The result of a sweep of such variants, with `more` rows at the end."""
    wanted = wanted or aim()
    found = entries(wanted, variants, n)
    rows = [*make_rows(found, wanted), *more]
    made: dict[str, Any] = {
        "name": "tries",
        "summary": "What is tried.",
        "models": {"base": "models/base", "sft": "models/sft"},
        "start": wanted.start,
        "splits": wanted.splits,
        "measure": wanted.measure,
        "objective": wanted.objective.model_dump(mode="json"),
        "settings": {"task": "sums", "part": "test", "n": dict.fromkeys(wanted.splits, n), "seeds": [0]},
        "rows": tuple(rows),
        "best": next(row.name for row in rows if row.best),
        "words": words(rows, found, wanted),
    }
    return SweepResult(**made | changes)


def many(count: int, splits: Sequence[str] = ("id", "ood")) -> dict[str, dict[str, float]]:
    """So many variants of four recipes."""
    draw = random.Random(count)
    names = [f"restore-top-20pct-{'abcd'[i % 4]} head={i}%" for i in range(count)]
    return {name: {split: 0.15 + 0.5 * draw.random() for split in splits} for name in names}
