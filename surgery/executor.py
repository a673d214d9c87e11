"""Runs plans: worker threads read, compute and write tensors under one memory budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import torch

from surgery import crew
from surgery.compute import make_tensors
from surgery.errors import CheckpointError
from surgery.jobs import Batch, Job, Part
from surgery.plan import Plan, TensorPlan
from surgery.reader import Reader
from surgery.spectral.decomposer import Decomposer
from surgery.writer import Writer, create_files


class Progress(Protocol):
    """Who wants to know how far a run is. `finished` is called by the worker threads, one at a time."""

    def begin(self, plan: Plan) -> None:
        """The run starts; of several outputs, called for each before any tensor is finished."""

    def finished(self, tensor: TensorPlan, resumed: bool) -> None:
        """A tensor is in place; `resumed` tells whether an earlier run had made it."""

    def stopping(self) -> None:
        """The run was interrupted and waits for the pieces at hand."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


@dataclass(slots=True)
class Executed:
    """BLAKE3 digests of all tensors of an output, and how many of these an earlier run had made."""

    digests: dict[str, str] = field(default_factory=dict)
    resumed: int = 0


def execute(
    batch: Batch,
    writers: Mapping[int, Writer],
    *,
    workers: int,
    memory: int | None = None,
    device: str = "cpu",
    decomposer: Decomposer | None = None,
    progress: Progress | None = None,
) -> dict[int, Executed]:
    """Make every tensor of the plans that have a writer; the others are finished, and decide over sizes only.

    Each worker does one job at a time with one thread of arithmetic, so the bytes depend neither on the number of
    workers nor on the order in which they finish. `memory` bounds the process, in bytes, and has passed
    `Batch.check_memory`: a job waits until its share is free. The first error stops the others at their next piece
    and is raised; so is KeyboardInterrupt.
    """
    create_files(list(writers.values()))
    if progress is not None:
        for output in writers:
            progress.begin(batch.plans[output])
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(model)) for model in batch.models]
        making = _Making(writers, readers, torch.device(device), decomposer or Decomposer(), progress)
        jobs = [job for job in batch.jobs if any(part.output in writers for part in job.parts)]
        crew.run(_order(jobs), making, workers=workers, memory=memory)
        for reader in readers:
            reader.check_unchanged()
    return making.done


class _Making:
    """What the crew does with the jobs."""

    def __init__(
        self,
        writers: Mapping[int, Writer],
        readers: Sequence[Reader],
        device: torch.device,
        decomposer: Decomposer,
        progress: Progress | None,
    ) -> None:
        self.writers = writers
        self.readers = readers
        self.device = device
        self.decomposer = decomposer
        self.progress = progress
        self.done = {output: Executed() for output in writers}
        self._lock = Lock()

    def name(self, job: Job) -> str:
        return job.name

    def memory(self, job: Job) -> int:
        return job.memory

    def prefetch(self, job: Job) -> None:
        """Let the kernel read the next job's inputs while this one is done."""
        for each in (part for given in job.all_inputs for part in given.parts):
            with suppress(CheckpointError):  # a hint; whoever reads it for good will tell
                self.readers[each.model].prefetch(each.info.stored)

    def do(self, job: Job, stopping: Callable[[], bool]) -> None:
        missing = [part for part in job.parts if part.output in self.writers and not self._found(part)]
        made = make_tensors(job, missing, self.readers, self.writers, self.device, stopping, self.decomposer)
        for part, digest in made:
            self.writers[part.output].finish(part.tensor.slot, digest)
            self._tell(part, digest, resumed=False)

    def _found(self, part: Part) -> bool:
        """Whether an earlier run has made it, and its bytes are still there."""
        slot, writer = part.tensor.slot, self.writers[part.output]
        before = writer.finished.get(slot.name)
        if before is None or writer.digest(slot) != before:
            return False
        self._tell(part, before, resumed=True)
        return True

    def _tell(self, part: Part, digest: str, *, resumed: bool) -> None:
        done = self.done[part.output]
        with self._lock:
            done.digests[part.tensor.slot.name] = digest
            done.resumed += resumed
            if self.progress is not None:
                self.progress.finished(part.tensor, resumed)

    def interrupted(self) -> None:
        if self.progress is not None:
            self.progress.stopping()


def _order(jobs: Sequence[Job]) -> list[Job]:
    """The jobs in the order in which they are begun.

    The longest come first, so that none is left alone at the end. Equal ones take turns among the files, since the
    kernel lets one thread at a time write to a file.
    """
    turns: Counter[tuple[int, str]] = Counter()
    ranked = []
    for position, job in enumerate(jobs):
        file = job.parts[0].output, job.parts[0].tensor.slot.file
        turns[file] += 1
        ranked.append((-job.flops, turns[file], position))
    return [jobs[position] for _, _, position in sorted(ranked)]
