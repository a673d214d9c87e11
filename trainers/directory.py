"""The directory of a run: whose it is, what it holds, and where a killed run goes on.

OUT/run.json              what makes the run: configuration, parent checkpoint, versions; also the lock
OUT/log.jsonl             figures, step by step
OUT/checkpoint-N/         a checkpoint after step N
OUT/final, OUT/inter-sft  links to checkpoints
OUT/report.json           written last: the run is finished
OUT/resume/checkpoint-N/  the state of training after step N, until the run is finished
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.closing import Closing
from surgery.wording import quoted
from trainers.errors import RunError

RUN = "run.json"
REPORT = "report.json"
LOG = "log.jsonl"
RESUME = "resume"
COMPLETE = "complete"  # a file in a state that was written to its end
PREFIX = "checkpoint-"
_FREE = ("report_to", "out")  # keys of a configuration that may differ when a run goes on


class RunDirectory(Closing):
    """The directory of one run, held by one process until it is closed.

    Made by the main process alone. Raises RunError.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        self.path = out
        self.finished = False
        self._fd = -1
        try:
            self._begin(json.loads(json.dumps(identity)), resume, overwrite)
        except OSError as error:
            self.close()
            if isinstance(error, RunError):
                raise
            raise _unwritable(out, error) from error

    @property
    def log(self) -> Path:
        """The file of the run's figures."""
        return self.path / LOG

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after a step lies."""
        return self.path / f"{PREFIX}{step}"

    def latest_state(self) -> int | None:
        """The step of the newest state that was written to its end, or None."""
        steps = [_step(path.parent) for path in (self.path / RESUME).glob(f"{PREFIX}*/{COMPLETE}")]
        return max((step for step in steps if step is not None), default=None)

    def seal(self, step: int) -> None:
        """Say that the state after a step is whole, and drop the older ones."""
        state = self.path / RESUME / f"{PREFIX}{step}"
        try:
            (state / COMPLETE).touch()
            for path in (self.path / RESUME).glob(f"{PREFIX}*"):
                if path != state:
                    shutil.rmtree(path)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def link(self, name: str, step: int) -> None:
        """Let `OUT/name` be the checkpoint after a step."""
        temporary = self.path / f".{name}"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.checkpoint(step).name)
            temporary.replace(self.path / name)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def drop(self, step: int) -> None:
        """Delete the checkpoint after a step."""
        try:
            if self.checkpoint(step).exists():
                shutil.rmtree(self.checkpoint(step))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the report, and drop the state, which nobody needs any more."""
        try:
            write_json(self.path / REPORT, report)
            shutil.rmtree(self.path / RESUME, ignore_errors=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.finished = True

    def close(self) -> None:
        """Give the lock back."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _begin(self, identity: dict[str, Any], resume: bool, overwrite: bool) -> None:
        file = self.path / RUN
        known = _read(file)
        if known is None and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunError(
                f"`{self.path}` exists and holds no run of `surgery train`; choose another `--out`, or remove it"
            )
        if known is not None and overwrite and not resume:
            self._lock(file)
            shutil.rmtree(self.path)
            self.close()
            known = None
        if known is None:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(file, identity)
            self._lock(file)
            return
        self._lock(file)
        if not resume:
            done = (self.path / REPORT).is_file()
            raise RunError(
                f"`{self.path}` holds {'a finished' if done else 'an interrupted'} run; "
                + ("" if done else "go on with it by `--resume`, or ")
                + "choose another `--out`, or begin anew with `--overwrite`"
            )
        _check_same(self.path, known, identity)
        self.finished = (self.path / REPORT).is_file()

    def _lock(self, file: Path) -> None:
        self._fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process is training into `{self.path}`; wait until it is done") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file at once, or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")
    temporary.replace(path)


def _check_same(path: Path, known: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise RunError where a run would go on as another one."""
    before, now = _flat(known), _flat(identity)
    free = tuple(f"config.{key}" for key in _FREE)
    differing = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(free)
    ]
    if differing:
        raise RunError(
            f"`{path}` was begun with other values of {quoted(key.removeprefix('config.') for key in differing)}, and "
            "going on would make neither run; use the same configuration, checkpoint and versions, or begin anew with "
            "`--overwrite`"
        )


def _flat(content: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(content, Mapping):
        return {prefix: content}
    flat: dict[str, object] = {}
    for key, value in content.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RunError(f"`{file}` is damaged; begin anew with another `--out`, or remove the directory") from error
    return content if isinstance(content, dict) else {}


def _step(path: Path) -> int | None:
    number = path.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() else None


def _unwritable(out: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write to `{error.filename or out}`: {error.strerror or error}; make room or choose another `--out`, "
        "and go on with `--resume`"
    )
