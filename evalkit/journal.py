"""Results as they come in: JSON lines that survive a kill, each under a name of its own."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from evalkit.errors import ResultsError
from surgery.closing import Closing

ID = "id"  # the key of a line's name


class Journal(Closing):
    """An append-only file of JSON objects, one a line, each named by its `id`; the last of a name counts.

    It is also the lock: one process at a time has it open. A line that a kill or a full disk cut short is taken away
    when the file is opened, and a damaged line elsewhere is as if it had not been written. Raises ResultsError.
    """

    def __init__(self, path: Path, busy: str = "another process is scoring this model under these settings") -> None:
        """Open it; `busy` is what to say where another process has it open."""
        self.path = path
        self._busy = busy
        self.rows: dict[str, dict[str, Any]] = {}
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ResultsError(f"cannot write results to `{path}`: {error.strerror}; choose another `--out`") from error
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def get(self, name: str) -> dict[str, Any] | None:
        """The object of that name, or None."""
        return self.rows.get(name)

    def put(self, name: str, row: Mapping[str, Any]) -> None:
        """Append an object; once this returns, a kill does not lose it."""
        line = json.dumps({ID: name, **row}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            with self._lock:
                while line:
                    line = line[os.write(self._fd, line) :]
        except OSError as error:
            raise ResultsError(
                f"cannot write results to `{self.path}`: {error.strerror}; what is finished is kept: make room and "
                "run the same command again"
            ) from error
        self.rows[name] = dict(row)

    def close(self) -> None:
        """Close the file, which releases the lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough where a process was forked, as vLLM's are
            os.close(fd)

    def _begin(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResultsError(
                f"{self._busy}: `{self.path}`; wait until it is done, or choose another `--out`"
            ) from error
        except OSError as error:
            raise ResultsError(
                f"cannot lock `{self.path}`: {error.strerror}; give an `--out` on a file system that has locks"
            ) from error
        try:
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.ftruncate(self._fd, whole)
        except OSError as error:
            raise ResultsError(f"cannot read the results in `{self.path}`: {error.strerror}") from error
        for line in content[:whole].splitlines():
            try:
                row = json.loads(line)
                self.rows[row.pop(ID)] = row
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # that piece of work is done again
