"""What a pipeline would do and take, stage by stage, before anything is done: `surgery reproduce --dry-run`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from surgery.errors import Fault, Faults, SurgeryError
from surgery.size import show_size
from trainers.errors import ConfigError
from trainers.reproduce.costs import Cost, models_of, stage_cost
from trainers.reproduce.estimates import FORMULA
from trainers.reproduce.options import parse
from trainers.reproduce.pipeline import Pipeline, Stage
from trainers.reproduce.places import SEED, Places
from trainers.reproduce.standing import seed_directory


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A stage with its command, what it reads and makes, and what it takes."""

    name: str
    title: str
    command: str
    needs: tuple[str, ...]
    models: tuple[str, ...]
    makes: str
    cost: Cost

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Room:
    """What this machine has: bytes of memory and of free disk, and of memory on each GPU."""

    memory: int
    disk: int
    devices: tuple[int, ...] = ()


@dataclass(frozen=True)
class DryRun:
    """All stages of one seed; every other one takes as much again."""

    pipeline: Pipeline
    seeds: int
    stages: tuple[Foreseen, ...]
    room: Room
    shortages: tuple[str, ...] = field(default=())
    formula: str = FORMULA

    @property
    def disk(self) -> int:
        """Bytes that stay when all seeds are done, and what the largest stages need meanwhile."""
        kept = sum(stage.cost.disk for stage in self.stages)
        return self.seeds * kept + self._largest(stage.cost.peak_disk - stage.cost.disk for stage in self.stages)

    @property
    def host(self) -> int:
        """Bytes of memory, where the largest stages run at once."""
        return self._largest(stage.cost.host for stage in self.stages)

    @property
    def device(self) -> int:
        """Bytes on each device, where the largest stages run at once; 0 where none is used."""
        return self._largest(stage.cost.device or 0 for stage in self.stages)

    @property
    def devices(self) -> int:
        """Devices that the most demanding stage uses."""
        return max(stage.cost.devices for stage in self.stages)

    def _largest(self, sizes: Iterable[int]) -> int:
        """The largest together, of as many stages as may be at work at once."""
        return sum(sorted(sizes, reverse=True)[: self.pipeline.jobs])

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "pipeline": self.pipeline.name,
            "seeds": self.seeds,
            "stages": [stage.json() for stage in self.stages],
            "disk": self.disk,
            "memory": self.host,
            "device_memory": self.device,
            "devices": self.devices,
            "machine": asdict(self.room),
            "shortages": list(self.shortages),
        }


def dry_run(pipeline: Pipeline, out: Path, seeds: int) -> DryRun:
    """Plan every stage, without a network and without writing to `out`. Raises ConfigError with all that is wrong."""
    faults: list[Fault] = []
    found: list[Foreseen] = []
    with TemporaryDirectory(prefix="surgery-plan-") as temporary:
        places = Places(pipeline, seed_directory(out, SEED), Path(temporary))
        for stage in pipeline.stages:
            try:
                found.append(_foreseen(pipeline, stage, places))
            except SurgeryError as error:
                inner = error.faults if isinstance(error, Faults) else (Fault("", str(error)),)
                faults += [Fault(f"stage `{stage.name}`", str(fault)) for fault in inner]
    if faults:
        raise ConfigError([*dict.fromkeys(faults)])
    made = DryRun(pipeline, seeds, tuple(found), _room(out))
    return DryRun(pipeline, seeds, made.stages, made.room, tuple(_shortages(made)))


def _foreseen(pipeline: Pipeline, stage: Stage, places: Places) -> Foreseen:
    parsed = parse(stage.words(SEED))
    models = tuple(models_of(parsed))
    return Foreseen(
        name=stage.name,
        title=stage.title,
        command=stage.shown(SEED),
        needs=pipeline.needs[stage.name],
        models=models,
        makes=stage.makes,
        cost=stage_cost(parsed, models, pipeline, stage, places),
    )


def _room(out: Path) -> Room:
    import torch

    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    devices = tuple(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Room(memory, shutil.disk_usage(existing).free, devices)


def _shortages(made: DryRun) -> Iterator[str]:
    """Why it would not fit here, a sentence each."""
    if made.disk > made.room.disk:
        yield f"the disk has {show_size(made.room.disk)} free, {show_size(made.disk)} are needed"
    if made.host > made.room.memory:
        yield f"the machine has {show_size(made.room.memory)} of memory, {show_size(made.host)} are needed"
    if made.devices > len(made.room.devices):
        yield f"the machine has {len(made.room.devices)} GPUs, {made.devices} are needed"
    elif made.devices and made.device > min(made.room.devices):
        yield f"a GPU has {show_size(min(made.room.devices))}, {show_size(made.device)} are needed on each"
    wanted = made.pipeline.machine
    if wanted.device_memory is not None and made.device > wanted.device_memory:
        meant = show_size(wanted.device_memory)
        yield f"GPUs of {meant}, which it is meant for, are too small: {show_size(made.device)} are needed on each"
