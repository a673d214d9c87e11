"""Runs a plan: worker threads read, compute and write tensors under one memory budget."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Protocol

import torch

from surgery.compute import Stopped, make_tensor
from surgery.errors import CheckpointError, Fault, PlanError
from surgery.plan import INTERPRETER_BYTES, Plan, TensorPlan
from surgery.reader import Reader
from surgery.writer import Writer


class Progress(Protocol):
    """Who wants to know how far a run is. `finished` is called by the worker threads, one at a time."""

    def begin(self, plan: Plan) -> None:
        """The run starts."""

    def finished(self, tensor: TensorPlan, resumed: bool) -> None:
        """A tensor is in place; `resumed` tells whether an earlier run had made it."""

    def stopping(self) -> None:
        """The run was interrupted and waits for the pieces at hand."""


ALLOCATOR_BLOCK = 31 << 20  # just below the 32 MiB from which glibc's thresholds follow no more
_OUT_OF_MEMORY = "there was not enough memory to make it; use fewer `--workers`, or bound the run with `--memory`"


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
    progress: Progress | None = None,
) -> Executed:
    """Make every tensor of the plan.

    Each worker makes one tensor at a time with one thread of arithmetic, so the bytes depend neither on the
    number of workers nor on the order in which they finish. `memory` bounds the process, in bytes, and has passed
    `Plan.check_memory`: a tensor waits until its share is free. The first error stops the others at their next piece
    and is raised; so is KeyboardInterrupt.
    """
    _settle_allocator()
    if progress is not None:
        progress.begin(plan)
    threads_before = torch.get_num_threads()
    with ExitStack() as stack:
        readers = {role: stack.enter_context(Reader(plan.inputs[role])) for role in plan.inputs}
        crew = _Crew(plan, writer, readers, memory, torch.device(device), progress)
        try:
            crew.run(workers)
        finally:
            torch.set_num_threads(threads_before)
        for reader in readers.values():
            reader.check_unchanged()
    return Executed(crew.digests, crew.resumed)


def check_device(name: str) -> None:
    """Raises PlanError for a device that torch does not know or that this machine does not have."""
    try:
        torch.ones(1, dtype=torch.float64, device=name).cpu()  # float64 is needed, and `meta` holds no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        message = "cannot be used here; expected `cpu`, or a device that the installed torch sees, such as `cuda:0`"
        raise PlanError([Fault(f"device `{name}`", message)]) from error


class _Crew:
    """The workers of one run and what they share."""

    def __init__(
        self,
        plan: Plan,
        writer: Writer,
        readers: Mapping[str, Reader],
        memory: int | None,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self.plan = plan
        self.writer = writer
        self.readers = readers
        self.device = device
        self.progress = progress
        self.digests: dict[str, str] = {}
        self.resumed = 0
        self.error: BaseException | None = None
        self._active = 0
        self._stop = threading.Event()
        self._queue = _order(plan)  # taken from the end
        self._free = None if memory is None else memory - INTERPRETER_BYTES
        self._changed = threading.Condition()

    def run(self, workers: int) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        try:
            for thread in threads:
                thread.start()
            self._wait()
        except BaseException as error:  # most likely KeyboardInterrupt
            self._halt(error)
            if self.progress is not None:
                self.progress.stopping()
            self._wait()  # the descriptors may be closed only once no worker uses them
            raise
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def _wait(self) -> None:
        """Until no worker is active; not by `Thread.join`, which takes an interrupt for the end of the thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._active == 0 and (self._stop.is_set() or not self._queue))

    def _work(self) -> None:
        with self._changed:
            self._active += 1
        torch.set_num_threads(1)
        try:
            while (tensor := self._take()) is not None:
                self._prefetch()
                try:
                    self._make(tensor)
                except (MemoryError, RuntimeError) as error:
                    if _is_out_of_memory(error):
                        raise PlanError([Fault(f"`{tensor.slot.name}`", _OUT_OF_MEMORY)]) from error
                    raise
                finally:
                    self._give_back(tensor)
        except BaseException as error:
            self._halt(error)
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def _make(self, tensor: TensorPlan) -> None:
        slot = tensor.slot
        before = self.writer.finished.get(slot.name)
        resumed = before is not None and self.writer.digest(slot) == before
        if resumed:
            assert before is not None
            digest = before
        else:
            digest = make_tensor(self.plan, tensor, self.readers, self.writer, self.device, self._stop.is_set)
            self.writer.finish(slot, digest)
        with self._changed:
            self.digests[slot.name] = digest
            self.resumed += resumed
            if self.progress is not None:
                self.progress.finished(tensor, resumed)

    def _take(self) -> TensorPlan | None:
        """The next tensor, once its memory is free; None when all is done or halted."""
        with self._changed:
            while self._queue and not self._stop.is_set():
                memory = self.plan.memory(self._queue[-1])
                if self._free is None or memory <= self._free:
                    self._account(-memory)
                    return self._queue.pop()
                self._changed.wait()
            return None

    def _give_back(self, tensor: TensorPlan) -> None:
        with self._changed:
            self._account(self.plan.memory(tensor))
            self._changed.notify_all()

    def _account(self, nbytes: int) -> None:
        if self._free is not None:
            self._free += nbytes

    def _prefetch(self) -> None:
        """Let the kernel read the next tensor's inputs while this one is computed."""
        for tensor in self._queue[-1:]:
            for source in tensor.inputs:
                with suppress(CheckpointError):  # a hint; whoever reads it for good will tell
                    self.readers[source.role].prefetch(source.info)

    def _halt(self, error: BaseException | None) -> None:
        with self._changed:
            if error is not None and self.error is None and not isinstance(error, Stopped):
                self.error = error
            self._stop.set()
            self._changed.notify_all()


def _order(plan: Plan) -> list[TensorPlan]:
    """The tensors, the first to be made last.

    The longest jobs come first, so that none is left alone at the end. Equal ones take turns among the files, since
    the kernel lets one thread at a time write to a file.
    """
    turns: Counter[str] = Counter()
    ranked = []
    for position, tensor in enumerate(plan.tensors):
        turns[tensor.slot.file] += 1
        ranked.append((-plan.flops(tensor), turns[tensor.slot.file], position))
    return [plan.tensors[position] for _, _, position in sorted(ranked, reverse=True)]


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """On the CPU torch has no class for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _settle_allocator() -> None:
    """Free one large block, after which glibc keeps smaller ones instead of giving them back to the kernel.

    Its thresholds follow the largest block that was freed (mallopt(3), M_MMAP_THRESHOLD); without this, a third of
    the system time of a `linear` went into page faults on the same few buffers. Elsewhere it does nothing.
    """
    torch.empty(ALLOCATOR_BLOCK, dtype=torch.uint8)
