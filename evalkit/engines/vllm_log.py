"""What vLLM's processes say: kept off the terminal, and looked through for the cause when one fails."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

LOOKED_AT = 1 << 20  # bytes at the end of the log: many tracebacks
SHOWN = 400  # characters of a cause

_CAUSE = re.compile(r"\b((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)): (.+)")
# Processes that fail because another did; their messages only send the reader on.
_CONSEQUENCE = re.compile(
    r"initialization failed|EngineDeadError|Worker failed with|See (?:the )?(?:stack trace|root cause)|died unexpected|"
    r"process ended"
)
_MEMORY = (
    "give it more memory (`VLLM_CPU_KVCACHE_SPACE` in GiB on a CPU, the option `gpu_memory_utilization` on a GPU), or "
    "lower `--max-tokens` or the option `max_model_len`"
)
_ADVICE = (
    (re.compile(r"memory|\bkv cache\b", re.IGNORECASE), _MEMORY),
    (re.compile(r"bootstrapping phase"), "guard the main part of your program: `if __name__ == '__main__':`"),
)
_OTHERWISE = "see the whole log with `VLLM_LOGGING_LEVEL=INFO`, or use `--engine transformers`"


class Log:
    """A file without a name, into which an engine's processes write instead of to the terminal.

    Where the user has set `VLLM_LOGGING_LEVEL` all of it is shown, on stderr: vLLM would write to stdout, into results.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, the processes write as long as they live
        self._shown = "VLLM_LOGGING_LEVEL" in os.environ

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Send what this process and those it starts meanwhile write to the terminal into the file.

        By the file descriptors: they are what started processes take over, for good.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [(fd, copy) for fd in (1, 2) if (copy := _copy(fd)) is not None]
        try:
            for fd, _ in kept:
                os.dup2(2 if self._shown else self._file.fileno(), fd)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in kept:
                os.dup2(copy, fd)
                os.close(copy)

    def cause(self, error: BaseException | None = None) -> str:
        """The likeliest cause of a failure in a sentence, and after a semicolon what to do about it.

        It is the last error of the log and the exception that is not about the failure of another process.
        """
        lines = self._text().splitlines() + ([] if error is None else _lines(error))
        found = [match for line in lines if (match := _CAUSE.search(line)) and not _CONSEQUENCE.search(line)]
        if found:
            what = f"{found[-1][1].rpartition('.')[2]}: {found[-1][2].strip()}"
        elif error is not None and not _CONSEQUENCE.search(str(error)):
            what = next(iter(_lines(error)))
        else:
            what = "its process ended without a word, as it does where the system runs out of memory"
        advice = next((words for pattern, words in _ADVICE if pattern.search(what)), _OTHERWISE)
        return f"{what[:SHOWN]}; {advice}"

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _text(self) -> str:
        if self._file.closed:
            return ""
        size = os.fstat(self._file.fileno()).st_size
        start = max(0, size - LOOKED_AT)
        return os.pread(self._file.fileno(), LOOKED_AT, start).decode(errors="replace")


def _copy(fd: int) -> int | None:
    try:
        return os.dup(fd)
    except OSError:  # a process may have closed it
        return None


def _lines(error: BaseException) -> list[str]:
    """The lines of an exception's message as a traceback would show them; pydantic's fault is on a later line."""
    first, *rest = str(error).strip().splitlines() or [""]
    faults = [f"ValueError: {line.strip().removeprefix('Value error, ')}" for line in rest if "Value error, " in line]
    return [f"{type(error).__name__}: {first}"] if not faults else [f.partition(" [type=")[0] for f in faults]
