"""The journal of an unfinished output: which tensors are done, with their digests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

FORMAT = 1


class Journal:
    """Append-only JSON lines: the identity of the work first, then one line for each finished tensor.

    A line counts once it ends in a newline, so a write that was cut short is as if it had not happened.
    `identity` is what was found at the head of the file (None for a new or unreadable journal), `finished`
    maps tensor names to BLAKE3 digests.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: Mapping[str, object] | None = None
        self.finished: dict[str, str] = {}
        self._lock = Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
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
            self.finished[name] = digest
            self._append({"tensor": name, "blake3": digest})

    def fileno(self) -> int:
        """The descriptor, for locking."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _append(self, row: Mapping[str, object]) -> None:
        line = json.dumps(row).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    def _read(self) -> None:
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        os.ftruncate(self._fd, len(whole))
        for number, line in enumerate(whole.splitlines()):
            try:
                row = json.loads(line)
                if number == 0 and row.pop("journal") == FORMAT:
                    self.identity = row
                elif self.identity is not None:
                    self.finished[row["tensor"]] = row["blake3"]
            except (ValueError, KeyError, TypeError, AttributeError):
                return  # what follows a damaged line is done again
