"""The figures of a run as they come in: JSON lines that survive a kill."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from surgery.closing import Closing
from surgery.whole_file import write_whole
from trainers.errors import RunError

STEP = "step"  # the key of a row's optimiser step, or update


class Log(Closing):
    """An append-only file of JSON objects, one a line: a step, and figures by name.

    Each line is handed to the system at once, so that a kill costs one line at most; what it cut short is taken away
    when the file is opened again, and a damaged line elsewhere is as if it had not been written. With `resume_at`
    the rows of later steps go: a run that goes on from the state after that step writes them anew. Raises RunError.
    """

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        self.path = path
        self._fd = -1
        self._rows: list[dict[str, Any]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._read(resume_at)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(path, error) from error

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was written so far, in that order: `step`, an int, and figures, each a float or None."""
        return [dict(row) for row in self._rows]

    def write(self, step: int, **figures: float) -> None:
        """Append a row; once this returns, a kill does not lose it.

        A figure that is not finite becomes None. Several rows may have the same step.
        """
        row = {STEP: int(step), **{name: _plain(float(figure)) for name, figure in figures.items()}}
        line = json.dumps(row).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._rows.append(row)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _read(self, resume_at: int | None) -> None:
        """Take the rows that are there and count; what does not is dropped from the file, all of it or nothing."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        kept = []
        for line in content.splitlines(keepends=True):
            row = _row(line)
            if row is not None and (resume_at is None or row[STEP] <= resume_at):
                kept.append(line)
                self._rows.append(row)
        if (sound := b"".join(kept)) != content:
            write_whole(self.path, sound)


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a line, or None where it is not one of ours."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get(STEP)) is not int:
        return None
    figures = [figure for name, figure in row.items() if name != STEP]
    return row if all(figure is None or isinstance(figure, float) for figure in figures) else None


def _plain(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot keep the run's figures in `{path}`: {error.strerror or error}; make room or choose another `--out`, "
        "and go on with `--resume`"
    )
