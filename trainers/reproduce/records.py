"""What is known of a seed's stages: one line for each beginning and end, appended, and the lock of the directory."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from surgery.closing import Closing
from trainers.errors import RunError

FILE = "stages.jsonl"
LOCK = ".lock"
State = Literal["begun", "finished", "failed", "interrupted", "open", "blocked"]
_BEGINNING = b'{"stage": '  # of every line
_POLL = 0.2  # seconds between two looks at a lock that an orphan holds


@dataclass(frozen=True, slots=True)
class Record:
    """How a stage stands: the digest of its command, and the seconds that all its runs took together.

    `begun` without an end is a run that was killed, `open` one whose result is to be deleted, `blocked` one that never
    was, since something else is in its place. `message` says why it failed. `run` is drawn anew whenever the command
    begins, `read` maps the stages whose results it read to the runs that had made those, and `versions` packages to
    theirs; records of before there were such have none.
    """

    state: State
    digest: str
    seconds: float = 0.0
    message: str = ""
    run: str = ""
    read: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def of_other(self, needs: Mapping[str, str]) -> list[str]:
        """Those of the stages whose results it read that have run again since, by their runs now."""
        return [name for name, run in needs.items() if self.read.get(name, "") != run]


@dataclass
class Records(Closing):
    """The stages of one seed, held by one process at a time.

    The lock is shared with the command that is running (see `Records.fd`): where this process is killed, the next one
    waits until that command has ended, too, which `note` is told. Raises RunError.
    """

    directory: Path
    note: Callable[[str], None] = lambda text: None  # noqa: ARG005
    rows: dict[str, Record] = field(default_factory=dict)
    fd: int = -1

    def __post_init__(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock()
            _end_last_line(self.directory / FILE)
            self.rows = read_records(self.directory)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, RunError):
                what = f"cannot write to `{self.directory}`: {error.strerror or error}"
                raise RunError(f"{what}; make room, or choose another `--out`") from error
            raise

    def put(self, stage: str, record: Record) -> None:
        """Write down how a stage stands; once this returns, a kill does not lose it."""
        line = json.dumps({"stage": stage, **record.json()}, ensure_ascii=False).encode("utf-8", "backslashreplace")
        path = self.directory / FILE
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, line + b"\n")
            finally:
                os.close(fd)
        except OSError as error:
            raise RunError(f"cannot write `{path}`: {error.strerror}; make room, and run the command again") from error
        self.rows[stage] = record

    def close(self) -> None:
        """Give the lock back; a command that is still running keeps it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _lock(self) -> None:
        """Take the lock, or wait for the command that a killed run has left. Raises RunError where one is at work."""
        path = self.directory / LOCK
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        waits = False
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = path.read_text().strip()
                if holder.isdecimal() and _lives(int(holder)):
                    raise RunError(
                        f"another `surgery reproduce` (process {holder}) is at work in `{self.directory}`; wait until "
                        "it is done"
                    ) from error
                if not waits:
                    waits = True
                    self.note(
                        f"waiting for the command that an earlier run, which was killed, has left at work in "
                        f"`{self.directory}`"
                    )
                time.sleep(_POLL)
            else:
                break
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)


def read_records(directory: Path) -> dict[str, Record]:
    """The last record of each stage; damaged lines are as if they had not been written.

    Raises RunError for what cannot be read, and for a file of other lines alone: what lies beside it would pass for
    nobody's.
    """
    path = directory / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"cannot read `{path}`: {error.strerror}; move it away, or choose another `--out`") from error
    rows: dict[str, Record] = {}
    lines = content.splitlines()
    for line in lines:
        try:
            row: Mapping[str, Any] = json.loads(line)
            name = row["stage"]
            known = (str(row.get("run", "")), dict(row.get("read", {})), dict(row.get("versions", {})))
            rows[name] = Record(row["state"], row["digest"], float(row["seconds"]), str(row["message"]), *known)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    if not rows and not all(_cut_short(line) for line in lines):
        raise RunError(
            f"no line of `{path}` can be read; put back what was there, or remove the directory to begin anew"
        )
    return rows


def _cut_short(line: bytes) -> bool:
    """Whether a kill may have left it of a record."""
    return line.startswith(_BEGINNING) or _BEGINNING.startswith(line)


def _end_last_line(path: Path) -> None:
    """Let what a kill has cut short be a line of its own."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
