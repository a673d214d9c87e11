"""The verbs: run a pipeline, plan it, make its report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.errors import Fault, Faults, SurgeryError
from surgery.plotting import need_matplotlib
from trainers.errors import ConfigError, RunError
from trainers.reproduce.loading import load
from trainers.reproduce.options import parse
from trainers.reproduce.pipeline import Pipeline
from trainers.reproduce.standing import Standing, standings
from trainers.reproduce.watch import Silence, Watch

if TYPE_CHECKING:
    from trainers.reproduce.dry_run import DryRun

Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How every stage stands, and where the report is."""

    pipeline: Pipeline
    out: Path
    stages: Sequence[Standing]
    report: Path

    @property
    def failed(self) -> list[Standing]:
        """Stages that failed, or were ended from outside."""
        return [each for each in self.stages if each.state in ("failed", "interrupted")]

    def asked(self, seeds: int, only: Sequence[str]) -> list[Standing]:
        """The stages that such a run was asked for; there may be others of earlier runs."""
        return [each for each in self.stages if each.seed < seeds and (not only or each.stage.name in only)]

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "pipeline": self.pipeline.name,
            "out": str(self.out),
            "report": str(self.report),
            "stages": [
                {
                    "seed": each.seed,
                    "stage": each.stage.name,
                    "state": each.state,
                    "seconds": round(each.seconds, 1),
                    "message": each.message,
                }
                for each in self.stages
            ],
        }


def reproduce(
    pipeline: Source,
    out: str | Path,
    *,
    seeds: int = 1,
    only: Sequence[str] = (),
    fresh: bool = False,
    watch: Watch | None = None,
) -> Outcome:
    """Run the stages of a pipeline (a bundled one's name, a file, a mapping) under `out`, and make the report.

    Stages that are finished are passed over; one that fails leaves those alone that do not need it. `seeds` runs the
    seeds 0 to N - 1, `only` the stages of these names; `fresh` makes anew those whose commands have changed since, and
    all after them. Raises ConfigError with all that is wrong before anything is done, RunError, and any other
    SurgeryError of the report; KeyboardInterrupt and Terminated once the command at hand has ended.
    """
    from trainers.reproduce.report import make_report
    from trainers.reproduce.run import run

    loaded, place = load(pipeline), _directory(out)
    _check_commands(loaded)
    need_matplotlib()
    run(loaded, place, range(seeds), only, fresh, watch or Silence())
    found = standings(loaded, place, _seeds(place, seeds))
    return Outcome(loaded, place, found, make_report(loaded, place, found))


def report(pipeline: Source, out: str | Path, *, seeds: int = 1) -> Outcome:
    """Make the report of what is there, and run nothing."""
    from trainers.reproduce.report import make_report

    loaded, place = load(pipeline), _directory(out)
    found = standings(loaded, place, _seeds(place, seeds))
    return Outcome(loaded, place, found, make_report(loaded, place, found))


def plan(pipeline: Source, out: str | Path, *, seeds: int = 1) -> DryRun:
    """What every stage would do and take; see `trainers.reproduce.dry_run`."""
    from trainers.reproduce.dry_run import dry_run

    return dry_run(load(pipeline), _directory(out), seeds)


def _directory(out: str | Path) -> Path:
    """Where everything goes. Raises RunError where something else is there."""
    place = Path(out)
    for path in (place, *place.parents):
        if os.path.lexists(path) and not path.is_dir():
            raise RunError(f"`{path}` is no directory; choose another `--out`, or move it away")
    return place


def _seeds(out: Path, seeds: int) -> list[int]:
    """Those that are asked for, and those that lie there from earlier runs."""
    there = [path.name.removeprefix("seed-") for path in out.glob("seed-*") if path.is_dir()]
    return sorted({*range(seeds), *(int(name) for name in there if name.isdecimal())})


def _check_commands(pipeline: Pipeline) -> None:
    """Raise ConfigError for commands that would refuse their words."""
    faults: list[Fault] = []
    for stage in pipeline.stages:
        try:
            parse(stage.words(0))
        except SurgeryError as error:
            found = error.faults if isinstance(error, Faults) else (Fault("", str(error)),)
            faults += [Fault(f"stage `{stage.name}`", str(fault)) for fault in found]
    if faults:
        raise ConfigError(faults)
