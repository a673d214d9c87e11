"""Runs one command in a process of its own: a fault, or a lack of memory, takes nothing else along."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import IO

from trainers.errors import RunError
from trainers.interrupts import Terminated

LINES = 5  # of what a command said last, where it gives no message of ours
KEPT = 200  # lines that are looked through for one
PATIENCE = 5.0  # seconds that what a command said is waited for, once it has ended
_ASKED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def python_words(launch: Sequence[str], words: Sequence[str]) -> list[str]:
    """The command as this interpreter runs it; a launcher is the one that is installed beside it, if there is one."""
    if not launch:
        # -P: no module of a directory that a stage has made stands in for an installed one.
        return [sys.executable, "-P", "-m", "surgery", *words]
    launcher = Path(sys.executable).with_name(launch[0])
    found = str(launcher) if launcher.is_file() else shutil.which(launch[0])
    if found is None:
        raise RunError(f"`{launch[0]}`, which starts this stage, is not installed; install it, or put it on the PATH")
    return [found, *launch[1:], "surgery", *words]


def run_child(
    command: Sequence[str], directory: Path, logs: tuple[Path, Path], lock: int, told: Callable[[str], None]
) -> str | None:
    """Run a command in a directory to its end; gives None, or the reason of its failure.

    `logs` are the files for its result and for what it says meanwhile, of which each line is `told`. It inherits the
    lock. Signals that ask this process to end are handed on to it once, and it is waited for.
    Raises KeyboardInterrupt or Terminated where they came, RunError where the command cannot be started.
    """
    result, talk = logs
    last: deque[str] = deque(maxlen=KEPT)
    try:
        result.parent.mkdir(parents=True, exist_ok=True)
        with result.open("wb") as out, talk.open("ab") as log:
            process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
                process_group=0, pass_fds=(lock,),
            )  # fmt: skip
            assert process.stderr is not None
            reader = Thread(target=_read, args=(process.stderr, log, last, told), daemon=True)
            with _handing_on(process) as asked:
                reader.start()
                code = process.wait()
                reader.join(PATIENCE)  # what it has started may hold the pipe open
    except OSError as error:
        raise RunError(f"cannot run the stage: {error.strerror or error} ({error.filename}); mend that") from error
    if asked:
        raise _ASKED[asked[0]]
    return None if code == 0 else _reason(code, list(last))


def _read(pipe: IO[bytes], log: IO[bytes], last: deque[str], told: Callable[[str], None]) -> None:
    with pipe:
        for line in pipe:
            if not log.closed:
                log.write(line)
                log.flush()
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                last.append(text)
                told(text)


@contextmanager
def _handing_on(process: subprocess.Popen[bytes]) -> Iterator[list[signal.Signals]]:
    """While it runs, signals to this process go to the command and to what it has started."""
    asked: list[signal.Signals] = []

    def hand_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        asked.append(signal.Signals(number))
        if process.poll() is None:
            os.killpg(process.pid, number)

    if current_thread() is not main_thread():  # which alone can take signals
        yield asked
        return
    before = {number: signal.signal(number, hand_on) for number in _ASKED}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reason(code: int, said: Sequence[str]) -> str:
    """Why a command failed: our own message, or how it ended and what it said last."""
    begins = [i for i, line in enumerate(said) if line.startswith(("error: ", "Error: "))]
    if begins and code > 0:
        return "\n".join(said[begins[-1] :]).split(": ", 1)[1]
    if code < 0:
        ended = f"ended by {signal.Signals(-code).name}"
        ended += ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
    else:
        ended = f"ended with exit code {code}"
    crash = max((i for i, line in enumerate(said) if line.startswith("Traceback ")), default=None)
    shown = said[-LINES:] if crash is None else [line for line in said[crash + 1 :] if not line.startswith(" ")]
    return "\n".join([ended, *shown[-LINES:]])
