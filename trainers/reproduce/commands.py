"""Commands in processes of their own: a fault, or a lack of memory, takes nothing else along."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType, TracebackType
from typing import IO, Any, Self

from trainers.errors import RunError
from trainers.interrupts import Terminated

LINES = 5  # of what a command said last, where it gives no message of ours
KEPT = 200  # lines that are looked through for one
PATIENCE = 5.0  # seconds that what a command said is waited for, once it has ended
NOT_STARTED = "not started"
SAFE_PATH = {"PYTHONSAFEPATH": "1"}  # no module of a directory that a stage has made stands in for an installed one
_ASKED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def python_words(launch: Sequence[str], words: Sequence[str]) -> list[str]:
    """The command as this interpreter runs it; a launcher is the one that is installed beside it, if there is one."""
    if not launch:
        return [sys.executable, "-m", "surgery", *words]
    launcher = Path(sys.executable).with_name(launch[0])
    found = str(launcher) if launcher.is_file() else shutil.which(launch[0])
    if found is None:
        raise RunError(f"`{launch[0]}`, which starts this stage, is not installed; install it, or put it on the PATH")
    return [found, *launch[1:], "surgery", *words]


class Commands:
    """The commands at work. While it is entered, signals that ask this process to end are handed on to all of them."""

    def __init__(self) -> None:
        self.asked: list[signal.Signals] = []
        self._ending = False
        self._at_work: set[subprocess.Popen[bytes]] = set()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if current_thread() is main_thread():  # which alone can take signals
            self._handlers = {number: signal.signal(number, self._hand_on) for number in _ASKED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(
        self, command: Sequence[str], directory: Path, logs: tuple[Path, Path], lock: int, told: Callable[[str], None]
    ) -> str | None:
        """Run a command in a directory to its end; gives None, or the reason of its failure.

        `logs` are the files for its result and for what it says meanwhile, of which each line is `told`. It inherits
        the lock. Several threads may do this at once. Raises RunError where the command cannot be started.
        """
        if self.asked or self._ending:
            return NOT_STARTED
        result, talk = logs
        last: deque[str] = deque(maxlen=KEPT)
        try:
            result.parent.mkdir(parents=True, exist_ok=True)
            with result.open("wb") as out, talk.open("ab") as log:
                process = subprocess.Popen(
                    command, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
                    process_group=0, pass_fds=(lock,), env=os.environ | SAFE_PATH,
                )  # fmt: skip
                assert process.stderr is not None
                reader = Thread(target=_read, args=(process.stderr, log, last, told), daemon=True)
                self._at_work.add(process)
                if self.asked or self._ending:  # while it was being started
                    _signal(process, self.asked[-1] if self.asked else signal.SIGTERM)
                reader.start()
                code = process.wait()
                reader.join(PATIENCE)  # what it has started may hold the pipe open
                self._at_work.discard(process)
        except OSError as error:
            raise RunError(f"cannot run the stage: {error.strerror or error} ({error.filename}); mend that") from error
        return None if code == 0 else _reason(code, list(last))

    def end(self) -> None:
        """Ask all that are at work to end, and start no other."""
        self._ending = True
        for process in tuple(self._at_work):
            _signal(process, signal.SIGTERM)

    def raise_asked(self) -> None:
        """Raise KeyboardInterrupt or Terminated where a signal has asked for it."""
        if self.asked:
            raise _ASKED[self.asked[0]]

    def _hand_on(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.asked.append(signal.Signals(number))
        for process in tuple(self._at_work):
            _signal(process, number)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To a command, and to what it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):  # it has ended, and the thread that waits for it has yet to notice
            os.killpg(process.pid, number)


def _read(pipe: IO[bytes], log: IO[bytes], last: deque[str], told: Callable[[str], None]) -> None:
    with pipe:
        for line in pipe:
            with suppress(ValueError):  # closed, since the command has ended; what it has started may speak on
                log.write(line)
                log.flush()
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                last.append(text)
                told(text)


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
