"""The journal of an unfinished output: whose work it is, and which tensors are done, with their digests."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from surgery.errors import OutputError

FORMAT = 1


class Journal:
    """Append-only JSON lines beside the unfinished output: the identity of the work, then each finished tensor.

    It is also the lock: only one process at a time can have it open. A line counts once it ends in a newline, so a
    write that was cut short is as if it had not happened. `identity` is what stands at the head of the file (None for
    a new or unreadable one), `finished` maps tensor names to BLAKE3 digests. Raises OutputError when another process
    has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: Mapping[str, object] | None = None
        self.finished: dict[str, str] = {}
        self._lock = Lock()
        self._fd = _open_locked(path)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def begin(self, identity: Mapping[str, object]) -> None:
        """Start anew: forget what was finished and write the identity."""
        self.identity, self.finished = identity, {}
        os.ftruncate(self._fd, 0)
        self._append({"journal": FORMAT, **identity})

    def record(self, name: str, digest: str) -> None:
        """Note that a tensor is finished; its bytes must be in the file already."""
        with self._lock:
            self._append({"tensor": name, "blake3": digest})
            self.finished[name] = digest

    def remove(self) -> None:
        """Delete the file: the output is complete and has its name."""
        self.path.unlink()

    def close(self) -> None:
        """Close the file, which releases the lock."""
        fd, self._fd = self._fd, -1  # a late `record` must fail, not write into whatever gets this number next
        if fd >= 0:
            os.close(fd)

    def _append(self, row: Mapping[str, object]) -> None:
        line = json.dumps(row).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    def _read(self) -> None:
        sound = 0  # bytes up to the end of the last line that can be read
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True)):
            try:
                row = json.loads(line if line.endswith(b"\n") else b"")
                if number == 0 and row.pop("journal") == FORMAT:
                    self.identity = row
                elif self.identity is not None:
                    self.finished[row["tensor"]] = row["blake3"]
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            sound += len(line)
        if self.identity is not None:
            os.ftruncate(self._fd, sound)  # what follows a damaged line is done again


def _open_locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError as error:
            os.close(fd)
            raise OutputError(
                f"another process is writing here: `{path}`; wait until it is done, or choose another OUT"
            ) from error
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its owner finished and deleted it between our two calls
