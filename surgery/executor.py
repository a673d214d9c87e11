"""Runs a plan: worker threads read, compute and write tensors under one memory budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import torch

from surgery import crew
from surgery.compute import make_tensor
from surgery.errors import CheckpointError
from surgery.plan import Plan, TensorPlan
from surgery.reader import Reader
from surgery.spectral.decomposer import Decomposer
from surgery.writer import Writer


class Progress(Protocol):
    """Who wants to know how far a run is. `finished` is called by the worker threads, one at a time."""

    def begin(self, plan: Plan) -> None:
        """The run starts."""

    def finished(self, tensor: TensorPlan, resumed: bool) -> None:
        """A tensor is in place; `resumed` tells whether an earlier run had made it."""

    def stopping(self) -> None:
        """The run was interrupted and waits for the pieces at hand."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


@dataclass(frozen=True, slots=True)
class Executed:
    """BLAKE3 digests of all tensors, and how many of these an earlier run had made."""

    digests: Mapping[str, str]
    resumed: int


def execute(
    plan: Plan,
    writer: Writer,
    *,
    workers: int,
    memory: int | None = None,
    device: str = "cpu",
    decomposer: Decomposer | None = None,
    progress: Progress | None = None,
) -> Executed:
    """Make every tensor of the plan.

    Each worker makes one tensor at a time with one thread of arithmetic, so the bytes depend neither on the
    number of workers nor on the order in which they finish. `memory` bounds the process, in bytes, and has passed
    `Plan.check_memory`: a tensor waits until its share is free. The first error stops the others at their next piece
    and is raised; so is KeyboardInterrupt.
    """
    if progress is not None:
        progress.begin(plan)
    with ExitStack() as stack:
        readers = {role: stack.enter_context(Reader(plan.inputs[role])) for role in plan.inputs}
        making = _Making(plan, writer, readers, torch.device(device), decomposer or Decomposer(), progress)
        crew.run(_order(plan), making, workers=workers, memory=memory)
        for reader in readers.values():
            reader.check_unchanged()
    return Executed(making.digests, making.resumed)


class _Making:
    """What the crew does with the tensors of a plan."""

    def __init__(
        self,
        plan: Plan,
        writer: Writer,
        readers: Mapping[str, Reader],
        device: torch.device,
        decomposer: Decomposer,
        progress: Progress | None,
    ) -> None:
        self.plan = plan
        self.writer = writer
        self.readers = readers
        self.device = device
        self.decomposer = decomposer
        self.progress = progress
        self.digests: dict[str, str] = {}
        self.resumed = 0
        self._lock = Lock()

    def name(self, job: TensorPlan) -> str:
        return job.slot.name

    def memory(self, job: TensorPlan) -> int:
        return self.plan.memory(job)

    def prefetch(self, job: TensorPlan) -> None:
        """Let the kernel read the next tensor's inputs while this one is computed."""
        for source in job.inputs:
            with suppress(CheckpointError):  # a hint; whoever reads it for good will tell
                self.readers[source.role].prefetch(source.info)

    def do(self, job: TensorPlan, stopping: Callable[[], bool]) -> None:
        before = self.writer.finished.get(job.slot.name)
        resumed = before is not None and self.writer.digest(job.slot) == before
        if resumed:
            assert before is not None
            digest = before
        else:
            digest = make_tensor(self.plan, job, self.readers, self.writer, self.device, stopping, self.decomposer)
            self.writer.finish(job.slot, digest)
        with self._lock:
            self.digests[job.slot.name] = digest
            self.resumed += resumed
            if self.progress is not None:
                self.progress.finished(job, resumed)

    def interrupted(self) -> None:
        if self.progress is not None:
            self.progress.stopping()


def _order(plan: Plan) -> list[TensorPlan]:
    """The tensors in the order in which they are begun.

    The longest jobs come first, so that none is left alone at the end. Equal ones take turns among the files, since
    the kernel lets one thread at a time write to a file.
    """
    turns: Counter[str] = Counter()
    ranked = []
    for position, tensor in enumerate(plan.tensors):
        turns[tensor.slot.file] += 1
        ranked.append((-plan.flops(tensor), turns[tensor.slot.file], position))
    return [plan.tensors[position] for _, _, position in sorted(ranked)]
