"""Makes the checkpoints of a batch, in this process or in one of its own: this module is that program, too.

The program has nothing of what this process holds: the engine's memory, its threads, its device. It reads a pickled
batch, and writes a line of JSON: null, or what went wrong.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NoReturn

import surgery
from surgery.api import Model, Variant
from surgery.closing import Closing
from surgery.errors import NumericalError, SurgeryError

if TYPE_CHECKING:
    from surgery.executor import Progress

WATCH_SECONDS = 0.5  # between two looks whether the process that scores is alive


@dataclass(frozen=True)
class Making:
    """How checkpoints are made, as by `surgery apply`.

    `disk` bounds in bytes what lies there of variants that may still go, the best so far among them where one is kept.
    What stays for good, with `keep` as `all` or `pareto`, is beside that.
    """

    workers: int | None = None
    memory: int | None = None
    device: str = "cpu"
    cache: bool = True
    disk: int | None = None


@dataclass(frozen=True)
class Batch:
    """Variants that are made in one pass; `beside`: all others of the sweep, which decide over decompositions too."""

    variants: Sequence[Variant]
    beside: Sequence[Variant] = ()


def make(batch: Batch, models: Mapping[str, Model], making: Making, progress: Progress | None = None) -> None:
    """Make the checkpoints in one pass, or go on where that was interrupted. Raises any SurgeryError."""
    surgery.apply_all(
        batch.variants, models, beside=batch.beside, workers=making.workers, memory=making.memory,
        device=making.device, cache=making.cache, progress=progress,
    )  # fmt: skip


class Maker(Closing):
    """Makes a batch in a process of its own, which ends with this one."""

    def __init__(self, batch: Batch, models: Mapping[str, Model], making: Making) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(  # -P: a file of the user's directory is no module of ours
            [sys.executable, "-P", "-m", __name__, str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
            process_group=0,  # Ctrl-C is for this process, which then ends that one
        )  # fmt: skip
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # `wait` tells why
            pickle.dump((batch, dict(models), making), pipe)

    def wait(self) -> None:
        """Wait until the checkpoints lie there.

        Raises SurgeryError with what went wrong in the other process, NumericalError where it was one.
        """
        assert self._process.stdout is not None
        answer = self._process.stdout.read()
        self._process.wait()
        if not answer:
            raise SurgeryError(self._reason())
        problem = json.loads(answer)
        if problem is not None:
            raise (NumericalError if problem["numerical"] else SurgeryError)(problem["message"])

    def close(self) -> None:
        """End the process; what it has finished is gone on with by the next that makes the same batch."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe is not None:
                pipe.close()

    def _reason(self) -> str:
        """Why the process has ended without an answer."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        if self._process.returncode < 0 or not lines:
            return (
                "the process that makes variants was ended from outside, perhaps for want of memory; bound it with "
                "`--memory`, and run the same command again"
            )
        return f"the process that makes variants has failed: {lines[-1]}; run the same command again"


def main() -> NoReturn:
    """Make the batch that comes on stdin, for the process whose id is given."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no answer
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    batch, models, making = pickle.load(sys.stdin.buffer)
    problem = None
    try:
        make(batch, models, making)
    except SurgeryError as error:
        problem = {"numerical": isinstance(error, NumericalError), "message": str(error)}
    answer.write(json.dumps(problem).encode())
    answer.close()
    os._exit(0)  # tearing torch down takes 0.3 s


def _end_with(parent: int) -> None:
    """End this process with the one that started it: nobody would score what it makes."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
