"""How the stages of a pipeline stand, from what is written down of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from surgery.wording import quoted
from trainers.reproduce.pipeline import Pipeline, Stage
from trainers.reproduce.records import Record, read_records


@dataclass(frozen=True, slots=True)
class Standing:
    """How a stage of a seed stands: finished, failed, interrupted, waiting (for one that is not finished) or open.

    `stale` is one whose result, where it still lies there, is of another command or of results that are no more.
    """

    seed: int
    stage: Stage
    state: str
    seconds: float = 0.0
    message: str = ""
    stale: bool = False


def seed_directory(out: Path, seed: int) -> Path:
    """Where the stages of a seed work."""
    return out / f"seed-{seed}"


def standings(pipeline: Pipeline, out: Path, seeds: Sequence[int]) -> list[Standing]:
    """How every stage stands, from what is written down."""
    found = []
    for seed in seeds:
        directory = seed_directory(out, seed)
        rows = read_records(directory)
        valid = valid_stages(pipeline, rows, seed)
        finished: set[str] = set()
        for stage in pipeline.stages:
            each = _standing(pipeline, stage, seed, rows.get(stage.name), stage.name in valid)
            if each.state == "finished" and not (directory / stage.makes).exists():
                each = replace(each, state="open")
            missing = [name for name in pipeline.needs[stage.name] if name not in finished]
            if each.state == "open" and missing:
                each = replace(each, state="waiting", message=f"waits for {quoted(missing)}")
            finished |= {stage.name} if each.state == "finished" else set()
            found.append(each)
    return found


def _standing(pipeline: Pipeline, stage: Stage, seed: int, row: Record | None, valid: bool) -> Standing:
    """By its record alone."""
    if row is None:
        return Standing(seed, stage, "open")
    if row.digest != pipeline.digest(stage, seed):
        return Standing(seed, stage, "open", message="its command has changed since it ran", stale=True)
    if row.state in ("open", "blocked"):
        return Standing(seed, stage, "failed" if row.message else "open", row.seconds, row.message, stale=True)
    if row.state == "finished" and not valid:
        return Standing(seed, stage, "open", message="what it was made of has been made anew", stale=True)
    return Standing(seed, stage, "interrupted" if row.state == "begun" else row.state, row.seconds, row.message)


def valid_stages(pipeline: Pipeline, rows: Mapping[str, Record], seed: int) -> set[str]:
    """Stages that finished as they are now, of results that were never made again since, and those likewise.

    A result that is gone leaves what was made of it as valid as it was, until it is made anew.
    """
    found: set[str] = set()
    for stage in pipeline.stages:
        row, needs = rows.get(stage.name), pipeline.needs[stage.name]
        same = row is not None and row.state == "finished" and row.digest == pipeline.digest(stage, seed)
        if same and found.issuperset(needs) and row is not None and not row.of_other(runs_of(rows, needs)):
            found.add(stage.name)
    return found


def runs_of(rows: Mapping[str, Record], names: Sequence[str]) -> dict[str, str]:
    """The last run of each of these stages."""
    return {name: rows[name].run for name in names}
