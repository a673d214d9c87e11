"""What a run comes to: its checkpoints, the best of them out of distribution, and curves for figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from evalkit.stats import CONFIDENCE, Estimate

ID, OOD = "id", "ood"
Trainer = Literal["sft", "ppo", "grpo"]
Row = Mapping[str, Any]  # of `trainers.log`: `step`, and figures by name


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A checkpoint: the optimiser step or update after which it was written, and what was measured there.

    `loss` is the training loss, and `reward` the mean reward of an episode, both means since the checkpoint before.
    `losses` are those of held-out examples by `id` and `ood`, in nats a token. `scores` are the shares of problems
    solved by split: `evalkit.stats.proportion` over the problems' keys gives them. `kept` is whether it still exists.
    """

    step: int
    name: str
    path: str
    kept: bool = True
    loss: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    reward: float | None = None

    def json(self) -> dict[str, Any]:
        """As plain data; what is not finite is None."""
        return {
            "step": self.step,
            "name": self.name,
            "path": self.path,
            "kept": self.kept,
            "loss": _plain(self.loss),
            "losses": {part: _plain(loss) for part, loss in self.losses.items()},
            "scores": {split: score.json() for split, score in self.scores.items()},
            "reward": _plain(self.reward),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The row that was written; raises AttributeError, KeyError or TypeError for anything else."""
        losses = {part: math.nan if loss is None else loss for part, loss in data["losses"].items()}
        scores = {split: _estimate(score) for split, score in data["scores"].items()}
        return cls(**{**data, "losses": losses, "scores": scores})


@dataclass(frozen=True, slots=True)
class Report:
    """A run: what was trained from which checkpoint, in how many steps or updates, with every checkpoint in order.

    `best` is the step of the best checkpoint out of distribution, `note` what the user should know, `task` what the
    checkpoints can be scored on.
    """

    trainer: Trainer
    model: str
    out: str
    steps: int
    checkpoints: tuple[CheckpointRow, ...]
    best: int | None = None
    note: str | None = None
    task: str | None = None

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "trainer": self.trainer,
            "model": self.model,
            "out": self.out,
            "task": self.task,
            "steps": self.steps,
            "best": self.best,
            "note": self.note,
            "confidence": CONFIDENCE,
            "checkpoints": [row.json() for row in self.checkpoints],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The report that was written; raises AttributeError, KeyError or TypeError for anything else."""
        rows = tuple(CheckpointRow.from_json(row) for row in data["checkpoints"])
        plain = {name: value for name, value in data.items() if name != "confidence"}
        return cls(**{**plain, "checkpoints": rows})


def best_step(rows: Iterable[CheckpointRow]) -> int | None:
    """The step of the best checkpoint out of distribution among those that still exist.

    The highest share of problems solved where all of them have one, equal shares by the lowest loss. Otherwise the
    lowest loss among those that have one, or, in a run without held-out losses, the highest share among those that have
    one. Of equal checkpoints the later. None where nothing was measured out of distribution.
    """
    rows = [row for row in rows if row.kept]
    with_loss = [row for row in rows if math.isfinite(_loss(row))]
    with_share = [row for row in rows if math.isfinite(_share(row))]
    if with_share and (len(with_share) == len(rows) or not with_loss):
        return max(with_share, key=lambda row: (_share(row), -_loss(row), row.step)).step
    return max(with_loss, key=lambda row: (-_loss(row), row.step)).step if with_loss else None


def series(rows: Iterable[Row], name: str) -> tuple[list[int], list[float]]:
    """The steps at which a figure was written, ascending, and its values, nan for null; the last of a step counts."""
    values = {row["step"]: math.nan if row[name] is None else row[name] for row in rows if name in row}
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def mean_since(rows: Sequence[Row], name: str, step: int) -> float | None:
    """The mean of a figure over all steps after `step`; None where it was not written, or was not finite once."""
    found = [value for at, value in zip(*series(rows, name), strict=True) if at > step]
    return _plain(math.fsum(found) / len(found)) if found else None


def _loss(row: CheckpointRow) -> float:
    loss = row.losses.get(OOD, math.inf)
    return loss if math.isfinite(loss) else math.inf


def _share(row: CheckpointRow) -> float:
    return row.scores[OOD].value if OOD in row.scores else math.nan


def _plain(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _estimate(data: Mapping[str, Any]) -> Estimate:
    value, low, high = data["value"], data["low"], data["high"]
    return Estimate(
        value=math.nan if value is None else value,
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        n=data["n"],
    )
