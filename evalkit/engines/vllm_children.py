"""The beginning of vLLM's processes: each ends with the one that started it, however that ends.

vLLM's core notices only an orderly end of the program that started it, and its workers that of the core only once they
have loaded the model: after a `kill -9` they would keep their memory for minutes, or for ever. So both begin with a
function of ours, which leaves out no moment of their start. On a cluster Ray starts the workers, and Ray ends them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

WATCH_SECONDS = 0.5  # between two looks whether the process above is alive

_theirs: dict[str, Callable[..., None]] = {}  # what is replaced here; it comes along where a process is forked


@contextmanager
def ending_with_us(core: Any, worker: Any) -> Iterator[None]:
    """The cores of engines that are started meanwhile, and the workers of those, end with this process.

    `core` and `worker` are vLLM's classes `EngineCoreProc` and `WorkerProc`.
    """
    with _replaced(core, "run_engine_core", partial(run_core, core, worker)):
        yield


def run_core(core: Any, worker: Any, *arguments: Any, **options: Any) -> None:
    """What a core does."""
    follow()
    with _replaced(worker, "worker_main", partial(run_worker, worker)):
        _theirs.get("run_engine_core", core.run_engine_core)(*arguments, **options)


def run_worker(worker: Any, *arguments: Any, **options: Any) -> None:
    """What a worker does."""
    follow()
    _theirs.get("worker_main", worker.worker_main)(*arguments, **options)


def follow() -> None:
    """Kill this process, from now on, once the one that started it by `multiprocessing` has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent.pid,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _replaced(owner: Any, name: str, ours: Callable[..., None]) -> Iterator[None]:
    """Put a function of ours into the place of a static method, by whose name processes are started."""
    _theirs[name] = getattr(owner, name)
    setattr(owner, name, staticmethod(ours))
    try:
        yield
    finally:
        setattr(owner, name, staticmethod(_theirs.pop(name)))
