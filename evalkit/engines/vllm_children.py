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
from typing import Any

WATCH_SECONDS = 0.5  # between two looks whether the process above is alive

_theirs: dict[str, Callable[..., None]] = {}  # what is replaced here; it comes along where a process is forked


@contextmanager
def ending_with_us() -> Iterator[None]:
    """The cores of engines that are started meanwhile, and the workers of those, end with this process."""
    from vllm.v1.engine.core import EngineCoreProc

    with _replaced(EngineCoreProc, "run_engine_core", run_core):
        yield


def run_core(*arguments: Any, **options: Any) -> None:
    """What a core does."""
    follow()
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor.multiproc_executor import WorkerProc

    with _replaced(WorkerProc, "worker_main", run_worker):
        _theirs.get("run_engine_core", EngineCoreProc.run_engine_core)(*arguments, **options)


def run_worker(*arguments: Any, **options: Any) -> None:
    """What a worker does."""
    follow()
    from vllm.v1.executor.multiproc_executor import WorkerProc

    _theirs.get("worker_main", WorkerProc.worker_main)(*arguments, **options)


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
def _replaced(owner: type, name: str, ours: Callable[..., None]) -> Iterator[None]:
    """Put a function of ours into the place of a static method, by whose name processes are started."""
    _theirs[name] = getattr(owner, name)
    setattr(owner, name, staticmethod(ours))
    try:
        yield
    finally:
        setattr(owner, name, staticmethod(_theirs.pop(name)))
