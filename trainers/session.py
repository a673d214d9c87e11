"""A run among its processes: one of them holds the directory, all of them know where to go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from evalkit.errors import first_line
from surgery.closing import Closing
from surgery.errors import SurgeryError
from trainers.config import Training
from trainers.directory import PREFIX, REPORT, RESUME, RunDirectory
from trainers.errors import RunError
from trainers.log import Log
from trainers.report import Report
from trainers.sharding import on_cpu

# How long processes wait for each other: while one of them plays episodes by an engine, or starts it.
PATIENCE = timedelta(hours=6)


class Session(Closing):
    """The directory of a run and its log, in the main process; in all, whether it is finished and where it goes on.

    `step` is that of the state to go on from, or None. Raises RunError, in every process.
    """

    def __init__(self, config: Training, identity: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        self.processes = PartialState(cpu=on_cpu(config.device), timeout=PATIENCE)
        self._out = Path(config.out)
        self.main = self.processes.is_main_process
        self._directory: RunDirectory | None = None
        self._log: Log | None = None
        found: list[Any] = [None, None, False]
        if self.main:
            try:
                # States are parted among the processes, and sums rounded by their number.
                whole = {**identity, "processes": self.processes.num_processes}
                self._directory = RunDirectory(self._out, whole, resume, overwrite)
                step = self._directory.latest_state()
                if step is not None and not self._directory.finished:
                    self._directory.check_state(step)
                if not self._directory.finished:
                    self._log = Log(self._directory.log, resume_at=-1 if step is None else step)
                found = [None, step, self._directory.finished]
            except SurgeryError as error:
                self.close()
                if self.processes.num_processes == 1:
                    raise
                found[0] = str(error)
        if self.processes.num_processes > 1:
            broadcast_object_list(found)
        if found[0] is not None:
            raise RunError(found[0])
        self.step: int | None = found[1]
        self.finished: bool = found[2]

    @property
    def states(self) -> Path:
        """Where the states of training lie; known to every process."""
        return self._out / RESUME

    def state(self, step: int) -> Path:
        """The state of training after a step."""
        return self.states / f"{PREFIX}{step}"

    @contextmanager
    def saving(self, step: int, *places: Path) -> Iterator[None]:
        """Where the state after a step is written, by every process: it counts once this ends, and older ones go.

        Raises RunError for whatever writing raises; what was written then, to other `places` too, is deleted.
        """
        try:
            yield
        except SurgeryError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError on a full disk
            for place in (self.state(step), *places):
                shutil.rmtree(place, ignore_errors=True)
            raise RunError(
                f"cannot save the state of training after step {step} in `{self.state(step)}` ({first_line(error)}); "
                "make room and go on with `--resume`"
            ) from error
        self._seal(step)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Where the state to go on from is read. Raises RunError for whatever a damaged one makes readers raise."""
        try:
            yield
        except SurgeryError:
            raise
        except Exception as error:
            assert self.step is not None
            found = f"the state `{self.state(self.step)}` cannot be read ({first_line(error)})"
            raise RunError(f"{found}; begin anew with `--overwrite`") from error

    def _seal(self, step: int) -> None:
        """Say that every process has written its part of the state after a step; older ones go."""
        self.processes.wait_for_everyone()
        if self.main:
            self.directory.seal(step)

    @property
    def directory(self) -> RunDirectory:
        """The main process's."""
        assert self._directory is not None, "only the main process writes"
        return self._directory

    @property
    def log(self) -> Log:
        """The main process's."""
        assert self._log is not None, "only the main process writes"
        return self._log

    def report(self) -> Report:
        """That of a finished run. Raises RunError."""
        try:
            return Report.from_json(json.loads((self._out / REPORT).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"cannot read `{self._out / REPORT}`: {error}; begin anew with `--overwrite`") from error

    def close(self) -> None:
        """Close log and directory."""
        if self._log is not None:
            self._log.close()
        if self._directory is not None:
            self._directory.close()
