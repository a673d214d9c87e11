"""The processes and threads of a running vLLM engine: noticed when they die, and ended for certain."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import InvalidStateError
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

ENDING = 5.0  # seconds that a process gets to end by itself

_WATCH = "evalkit-vllm"  # our thread's name
_CLIENT = {_WATCH, "MPClientEngineMonitor", "EngineCoreOutputQueueThread"}  # and those of vLLM's client


class Processes:
    """The child processes and threads that come from here on: make one before an engine is started."""

    def __init__(self) -> None:
        self._before = set(multiprocessing.active_children())
        self._threads = set(threading.enumerate())
        self._ours: list[BaseProcess] = []

    def watch(self, client: Any) -> None:
        """Wake vLLM's client when a process ends.

        It waits for outputs and for results of calls without a limit, and for ever where the core was killed and could
        send no last word, as it is when the system is out of memory (`SyncMPClient` of
        vllm/v1/engine/core_client.py: `get_output` and `call_utility`).
        """
        self._ours = self._found()
        if self._ours and hasattr(client, "outputs_queue"):
            sentinels = [each.sentinel for each in self._ours]
            threading.Thread(target=_wake_at_end, args=(client, sentinels), name=_WATCH, daemon=True).start()

    def end(self) -> None:
        """Wait for the processes, and kill those that do not end by themselves; their workers end with them.

        Then for the threads of vLLM's client, which end with the processes: Python was seen to abort when it ended
        while one of them still ran.
        """
        for process in self._ours or self._found():
            process.join(ENDING)
            if process.is_alive():
                process.kill()
                process.join()
        for thread in set(threading.enumerate()) - self._threads:
            if thread.name in _CLIENT:
                thread.join(ENDING)

    def _found(self) -> list[BaseProcess]:
        return [each for each in multiprocessing.active_children() if each not in self._before]


def _wake_at_end(client: Any, sentinels: list[int]) -> None:
    wait(sentinels)
    client.resources.engine_dead = True  # first, so that no call is begun after those that fail here
    for future in list(client.utility_results.values()):
        with suppress(InvalidStateError):  # it was answered
            future.set_exception(RuntimeError("the engine's process ended"))
    client.outputs_queue.put_nowait(RuntimeError("the engine's process ended"))
