"""What a run writes: figures, checkpoints, which of them stay, and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evalkit.samples import Sample
from evalkit.stats import Estimate, proportion
from surgery.whole_file import as_json, write_whole
from trainers.checkpoints import Saver
from trainers.config import Training
from trainers.directory import FINAL, INTER_SFT
from trainers.errors import RunError
from trainers.plots import plot_losses, plot_updates
from trainers.report import CheckpointRow, Report, Row, best_step, mean_since, series
from trainers.report import Trainer as TrainerName
from trainers.session import Session

ROWS = "checkpoints.json"  # the rows of the table so far, for a run that goes on


class Recorder:
    """Keeps the figures of a run and its checkpoints. In every process but the main one it does nothing."""

    def __init__(self, session: Session, saver: Saver | None, config: Training, trainer: TrainerName) -> None:
        self.main = session.main
        self.session = session
        self._saver = saver
        self._config = config
        self._trainer: TrainerName = trainer
        self._rows: list[CheckpointRow] = []
        self._scores: dict[int, Mapping[str, Estimate]] = {}
        if self.main and session.step is not None:
            self._rows = [row for row in _read(session.directory.path / ROWS) if row.step <= session.step]

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a line of the log."""
        if self.main and figures:
            self.session.log.write(step, **figures)

    def scores(self, step: int, samples: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
        """Take the episodes of a measurement, by split; gives the figures of its log line."""
        if not self.main:
            return {}
        self._scores[step] = {
            split: proportion([sample.correct for sample in found], [sample.key for sample in found])
            for split, found in samples.items()
        }
        name = "accuracy" if self._trainer == "sft" else "success"
        return {f"{split}_{name}": score.value for split, score in self._scores[step].items()}

    def checkpoint(self, step: int, network: Any, weights: Mapping[str, torch.Tensor]) -> None:
        """Write a checkpoint, and drop those that need not stay."""
        if not self.main:
            return
        assert self._saver is not None
        rows = self.session.log.rows
        here: dict[str, float] = {}
        for row in rows:
            if row["step"] == step:
                here.update({name: value for name, value in row.items() if name != "step" and value is not None})
        path = self._saver.save(step, network, weights, here)
        before = self._rows[-1].step if self._rows else 0
        self._rows.append(
            CheckpointRow(
                step=step,
                name=path.name,
                path=str(path),
                loss=mean_since(rows, "loss", before),
                losses={part: here[f"{part}_loss"] for part in ("id", "ood") if f"{part}_loss" in here},
                scores=self._scores.get(step, {}),
                reward=mean_since(rows, "reward", before),
            )
        )
        if self._config.keep == "best":
            self._drop()
        try:
            table = as_json({"checkpoints": [row.json() for row in self._rows]})
            write_whole(self.session.directory.path / ROWS, table)
        except OSError as error:
            raise RunError(f"cannot write to `{self.session.directory.path}`: {error.strerror}; make room") from error

    def export(self, place: Path, network: Any, weights: Mapping[str, torch.Tensor]) -> None:
        """Write the network as a checkpoint that is no part of the run, for an engine to load."""
        if self._saver is not None:
            self._saver.write(place, network, weights, "the present weights")

    def finish(self, steps: int, note: str | None = None, task: str | None = None) -> Report:
        """Link the final and the best checkpoint, draw the figures, and write the report: the run is finished.

        Other processes than the main one get a report without checkpoints.
        """
        best = best_step(self._rows)
        if self.main and note is None:
            note = _missed(self.session.log.rows, self._rows)
        report = Report(
            trainer=self._trainer,
            model=self._config.model,
            out=self._config.out,
            steps=steps,
            checkpoints=tuple(self._rows),
            best=best,
            note=note,
            task=task,
        )
        if self.main:
            directory = self.session.directory
            directory.link(FINAL, self._rows[-1].step)
            if best is not None and self._trainer == "sft":
                directory.link(INTER_SFT, best)
            if self._trainer == "sft":
                plot_losses(self.session.log.rows, best, directory.path)
            else:
                plot_updates(self.session.log.rows, directory.path)
            directory.finish(report.json())
        return report

    @property
    def last_good(self) -> str:
        """The end of a message: which checkpoint is the last good one."""
        return self._saver.last_good() if self._saver else ""

    def _drop(self) -> None:
        stay = {self._rows[-1].step, best_step(self._rows)}
        for i, row in enumerate(self._rows):
            if row.kept and row.step not in stay:
                self.session.directory.drop(row.step)
                self._rows[i] = replace(row, kept=False)


def _missed(rows: Sequence[Row], checkpoints: Sequence[CheckpointRow]) -> str | None:
    """What to say where the lowest loss out of distribution was measured at a step of which there is no checkpoint."""
    steps, losses = series(rows, "ood_loss")
    measured = [(loss, step) for step, loss in zip(steps, losses, strict=True) if step and math.isfinite(loss)]
    lowest, step = min(measured, default=(0.0, 0))
    if step in {0, *(row.step for row in checkpoints)}:
        return None
    return f"the OOD loss was lowest at step {step:,} ({lowest:.3f}), of which there is no checkpoint; set `save_every`"


def _read(path: Path) -> list[CheckpointRow]:
    try:
        return [CheckpointRow.from_json(row) for row in json.loads(path.read_bytes())["checkpoints"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"cannot read `{path}`: {error}; begin anew with `--overwrite`") from error
