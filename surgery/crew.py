"""Worker threads that share one memory budget and stop together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch

from surgery.errors import Fault, PlanError
from surgery.plan import INTERPRETER_BYTES

Job = TypeVar("Job")
Job_contra = TypeVar("Job_contra", contravariant=True)
ALLOCATOR_BLOCK = 31 << 20  # just below the 32 MiB from which glibc's thresholds follow no more
_OUT_OF_MEMORY = "there was not enough memory for it; use fewer `--workers`, or bound the run with `--memory`"


class Stopped(Exception):
    """Another worker failed, or the user interrupted: the job at hand is left unfinished."""


class Work(Protocol[Job_contra]):
    """What is done with the jobs of a run; the worker threads call it, several at a time."""

    def name(self, job: Job_contra) -> str:
        """What a message about the job calls it."""

    def memory(self, job: Job_contra) -> int:
        """Bytes that a worker holds while it does the job."""

    def prefetch(self, job: Job_contra) -> None:
        """The job is next in the queue: a chance to have its inputs read ahead."""

    def do(self, job: Job_contra, stopping: Callable[[], bool]) -> None:
        """Do the job; raise Stopped as soon as `stopping` says so, between two pieces of it."""

    def interrupted(self) -> None:
        """The run was interrupted and waits for the pieces at hand; called by the thread that runs the crew."""


def run(jobs: Sequence[Job], work: Work[Job], *, workers: int, memory: int | None = None) -> None:
    """Do all jobs, begun in their order, by so many threads with one thread of arithmetic each.

    `memory` bounds the process, in bytes: a job waits until its share is free (one that never fits must have been
    refused before). The first error stops the others at their next piece and is raised; so is KeyboardInterrupt.
    """
    _settle_allocator()
    threads_before = torch.get_num_threads()
    try:
        _Crew(jobs, work, memory).run(workers)
    finally:
        torch.set_num_threads(threads_before)


def check_device(name: str) -> None:
    """Raises PlanError for a device that torch does not know or that this machine does not have."""
    try:
        torch.ones(1, dtype=torch.float64, device=name).cpu()  # float64 is needed, and `meta` holds no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        message = "cannot be used here; expected `cpu`, or a device that the installed torch sees, such as `cuda:0`"
        raise PlanError([Fault(f"device `{name}`", message)]) from error


class _Crew(Generic[Job]):
    """The workers of one run and what they share."""

    def __init__(self, jobs: Sequence[Job], work: Work[Job], memory: int | None) -> None:
        self.work = work
        self.error: BaseException | None = None
        self._active = 0
        self._stop = threading.Event()
        self._queue = list(reversed(jobs))  # taken from the end
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
            self.work.interrupted()
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
            while (job := self._take()) is not None:
                for following in self._queue[-1:]:
                    self.work.prefetch(following)
                try:
                    self.work.do(job, self._stop.is_set)
                except (MemoryError, RuntimeError) as error:
                    if _is_out_of_memory(error):
                        raise PlanError([Fault(f"`{self.work.name(job)}`", _OUT_OF_MEMORY)]) from error
                    raise
                finally:
                    self._give_back(job)
        except BaseException as error:
            self._halt(error)
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def _take(self) -> Job | None:
        """The next job, once its memory is free; None when all is done or halted."""
        with self._changed:
            while self._queue and not self._stop.is_set():
                memory = self.work.memory(self._queue[-1])
                if self._free is None or memory <= self._free:
                    self._account(-memory)
                    return self._queue.pop()
                self._changed.wait()
            return None

    def _give_back(self, job: Job) -> None:
        with self._changed:
            self._account(self.work.memory(job))
            self._changed.notify_all()

    def _account(self, nbytes: int) -> None:
        if self._free is not None:
            self._free += nbytes

    def _halt(self, error: BaseException | None) -> None:
        with self._changed:
            if error is not None and self.error is None and not isinstance(error, Stopped):
                self.error = error
            self._stop.set()
            self._changed.notify_all()


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """On the CPU torch has no class for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _settle_allocator() -> None:
    """Free one large block, after which glibc keeps smaller ones instead of giving them back to the kernel.

    Its thresholds follow the largest block that was freed (mallopt(3), M_MMAP_THRESHOLD); without this, a third of
    the system time of a `linear` went into page faults on the same few buffers. Elsewhere it does nothing.
    """
    torch.empty(ALLOCATOR_BLOCK, dtype=torch.uint8)
