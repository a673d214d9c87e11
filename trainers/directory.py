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

from surgery.closing import Closing
from surgery.whole_file import as_json, write_whole
from surgery.wording import quoted
from trainers.errors import RunError

RUN = "run.json"
REPORT = "report.json"
LOG = "log.jsonl"
RESUME = "resume"
COMPLETE = "complete"  # in a state that was written to its end, its files and their sizes
PREFIX = "checkpoint-"
FINAL, INTER_SFT = "final", "inter-sft"  # links to checkpoints
_KEYS = {"trainer", "config", "parent", "data", "versions"}  # of run.json
# May differ when a run goes on: the checkpoint counts by its content, wherever it lies.
_FREE = ("config.report_to", "config.out", "config.model")
_NAMES = {"parent": "the files of `model`", "chat_template": "the file `chat_template`"}


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
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, RunError):
                raise _unwritable(out, error) from error
            raise

    @property
    def log(self) -> Path:
        """The file of the run's figures."""
        return self.path / LOG

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after a step lies."""
        return self.path / f"{PREFIX}{step}"

    def latest_state(self) -> int | None:
        """The step of the newest state that was written to its end, or None."""
        return max(_steps(self.path / RESUME, COMPLETE), default=None)

    def check_state(self, step: int) -> None:
        """Raise RunError where a file of a state is gone or cut short: transformers would do without some, silently."""
        state = self.path / RESUME / f"{PREFIX}{step}"
        try:
            found = _sizes(state)
            written = json.loads((state / COMPLETE).read_bytes())
        except (OSError, ValueError):
            found, written = {}, {COMPLETE: None}
        wrong = sorted(name for name, size in written.items() if found.get(name) != size)
        if wrong:
            raise RunError(
                f"the state `{state}` is damaged: {quoted(wrong)} missing or of another size than was written; begin "
                "anew with `--overwrite`"
            )

    def steps(self, file: str) -> list[int]:
        """The steps of the checkpoints that hold a file of this name."""
        return _steps(self.path, file)

    def seal(self, step: int) -> None:
        """Say that the state after a step is whole, and drop the older ones."""
        state = self.path / RESUME / f"{PREFIX}{step}"
        try:
            write_whole(state / COMPLETE, as_json(_sizes(state)))
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
            write_whole(self.path / REPORT, as_json(report))
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
        _check_ours(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        known = _read(self.path / RUN)
        if known is not None and ((overwrite and not resume) or not self._worth_keeping()):
            self._clear()
            known = None
        if known is None:
            self._write(identity)
            return
        self.finished = (self.path / REPORT).is_file()
        if not resume:
            raise RunError(
                f"`{self.path}` holds {'a finished' if self.finished else 'an interrupted'} run; "
                + ("" if self.finished else "go on with it by `--resume`, or ")
                + "choose another `--out`, or begin anew with `--overwrite`"
            )
        _check_same(self.path, known, identity)
        if self.finished:  # and perhaps killed before this
            shutil.rmtree(self.path / RESUME, ignore_errors=True)

    def _worth_keeping(self) -> bool:
        """Whether a run has come to a report, a checkpoint, or a state to go on from."""
        return any(self.path.glob(f"{PREFIX}*")) or (self.path / REPORT).is_file() or self.latest_state() is not None

    def _lock(self) -> None:
        """Take the lock before anything is known or written: of two that begin at once, one finds the other's run."""
        self._fd = os.open(self.path / RUN, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process is training into `{self.path}`; wait until it is done") from error

    def _clear(self) -> None:
        """Delete all but the lock; first what makes a run finished or resumable, for the case of a kill."""
        for path in sorted(self.path.iterdir(), key=lambda path: path.name not in (REPORT, RESUME)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != RUN:
                path.unlink()
        os.ftruncate(self._fd, 0)

    def _write(self, identity: Mapping[str, Any]) -> None:
        """Write into the lock itself, which is not to be replaced."""
        content = as_json(identity)
        try:
            while content:
                content = content[os.write(self._fd, content) :]
        except OSError:
            (self.path / RUN).unlink()
            raise


def _check_ours(path: Path) -> None:
    """Raise RunError where something else than a run lies: a run's directory is empty, or has a file of ours."""
    if os.path.lexists(path) and not _is_ours(path):
        raise RunError(f"`{path}` exists and holds no run of `surgery train`; choose another `--out`, or remove it")


def _is_ours(path: Path) -> bool:
    if not path.is_dir():
        return False
    known = _read(path / RUN)
    return known.keys() >= _KEYS if known is not None else {child.name for child in path.iterdir()} <= {RUN}


def _check_same(path: Path, known: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise RunError where a run would go on as another one."""
    before, now = _flat(known), _flat(identity)
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    keys = [key for key in differing if not any(f"{key}.".startswith(f"{free}.") for free in _FREE)]
    named = [_NAMES.get(key, f"`{key.removeprefix('config.')}`") for key in keys if not key.startswith("data.")]
    if len(named) < len(keys) and not any(key.startswith("config.") for key in keys):  # else they follow from it
        named.append("the data")
    if named:
        raise RunError(
            f"`{path}` was begun with others of these: {', '.join(named)}; going on would make neither run; use the "
            "same configuration, checkpoint, data and versions, or begin anew with `--overwrite`"
        )


def _flat(content: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(content, Mapping):
        return {prefix: content}
    flat: dict[str, object] = {}
    for key, value in content.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _read(file: Path) -> dict[str, Any] | None:
    """What makes the run; None where there is none, or one that was killed before it was written down."""
    try:
        raw = file.read_bytes()
        content = json.loads(raw) if raw else None
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"`{file}` is damaged; begin anew with another `--out`, or remove the directory") from error
    return content if isinstance(content, dict) or content is None else {}


def _sizes(state: Path) -> dict[str, int]:
    files = (path for path in state.rglob("*") if path.is_file() and path.name != COMPLETE)
    return {path.relative_to(state).as_posix(): path.stat().st_size for path in files}


def _steps(directory: Path, file: str) -> list[int]:
    names = [path.parent.name.removeprefix(PREFIX) for path in directory.glob(f"{PREFIX}*/{file}")]
    return [int(name) for name in names if name.isdecimal()]


def _unwritable(out: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write to `{error.filename or out}`: {error.strerror or error}; make room or choose another `--out`, "
        "and go on with `--resume`"
    )
