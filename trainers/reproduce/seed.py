"""The stages of one seed: those that need nothing of each other run side by side, as many as the pipeline allows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from time import monotonic

from surgery.wording import quoted
from trainers.errors import RunError
from trainers.reproduce.commands import Commands, python_words
from trainers.reproduce.pipeline import TRAINERS, Pipeline, Stage
from trainers.reproduce.records import Record, Records, State
from trainers.reproduce.standing import runs_of, valid_stages
from trainers.reproduce.versions import versions
from trainers.reproduce.watch import Watch

LOGS = "logs"
RUN = 6  # bytes of a run's name, which are drawn


@dataclass(frozen=True, slots=True)
class _Begun:
    """A stage whose command is at work, its record so far, and when that began."""

    stage: Stage
    record: Record
    since: float = field(default_factory=monotonic)


@dataclass
class Seed:
    """Runs a seed's stages; the records are written by the thread that calls, the commands run in others."""

    pipeline: Pipeline
    records: Records
    seed: int
    commands: Commands
    watch: Watch

    def run(self, wanted: Sequence[Stage]) -> None:
        """Bring these stages as far as they come: what is finished is passed over, what fails is not tried again.

        Raises KeyboardInterrupt or Terminated, once the commands that were at work have ended.
        """
        open_stages = list(wanted)
        at_work: dict[Future[str | None], _Begun] = {}
        with ThreadPoolExecutor(self.pipeline.jobs) as pool:
            try:
                while self._begin(open_stages, at_work, pool):
                    ended, _ = wait(at_work, return_when=FIRST_COMPLETED)
                    for each in ended:
                        self._end(at_work.pop(each), each)
            except BaseException:  # the disk is full, say
                self.commands.end()
                raise
        self.commands.raise_asked()
        for stage in open_stages:
            if not self._finished(stage.name):
                self.watch.stage(self.seed, stage.name, stage.title, "")
                self.watch.ended(stage.name, "waiting", 0.0, f"waits for {quoted(self._missing(stage))}")

    def _begin(
        self, open_stages: list[Stage], at_work: dict[Future[str | None], _Begun], pool: ThreadPoolExecutor
    ) -> bool:
        """Start what can be, in the pipeline's order, and take it from `open_stages`; tells whether any is at work."""
        for stage in tuple(open_stages):
            if len(at_work) == self.pipeline.jobs or self.commands.asked:
                break
            if self._finished(stage.name) or self._missing(stage):
                continue
            open_stages.remove(stage)
            record = self._prepare(stage)
            if record is not None:
                at_work[pool.submit(self._command, stage)] = _Begun(stage, record)
        return bool(at_work)

    def _prepare(self, stage: Stage) -> Record | None:
        """Make way for a stage's result, and write down that it begins; None where something is in its place."""
        digest, known = self.pipeline.digest(stage, self.seed), self.records.rows.get(stage.name)
        spent = known.seconds if known is not None else 0.0
        read = runs_of(self.records.rows, self.pipeline.needs[stage.name])
        self.watch.stage(self.seed, stage.name, stage.title, stage.shown(self.seed))
        if known is not None and known.state == "finished" and known.of_other(read):
            self.watch.note(f"`{stage.makes}` was made of an earlier run of {quoted(known.of_other(read))}; "
                            "it is made anew")  # fmt: skip
        try:
            make_way(stage, self.records.directory / stage.makes, known, read)
        except RunError as error:  # others may go on
            state: State = "blocked" if known is None or known.state == "blocked" else "open"
            self.records.put(stage.name, Record(state, digest, spent, str(error)))
            self.watch.ended(stage.name, "failed", 0.0, str(error))
            return None
        begun = Record("begun", digest, spent, run=token_hex(RUN), read=read, versions=versions())
        self.records.put(stage.name, begun)
        return begun

    def _command(self, stage: Stage) -> str | None:
        """Run it; gives the reason of its failure. In a thread of its own."""
        logs = self.records.directory / LOGS
        try:
            return self.commands.run(
                python_words([str(word) for word in stage.launch], stage.words(self.seed)),
                self.records.directory,
                (logs / f"{stage.name}.txt", logs / f"{stage.name}.log"),
                self.records.fd,
                lambda line: self.watch.said(stage.name, line),
            )
        except RunError as error:
            return str(error)

    def _end(self, begun: _Begun, command: Future[str | None]) -> None:
        """Write down how a command has ended."""
        stage = begun.stage
        failure = command.result()
        if failure is None and not (self.records.directory / stage.makes).exists():
            failure = f"it ended well, but `{stage.makes}` is not there; mend `makes` in the pipeline"
        state: State = "finished" if failure is None else "failed"
        if failure is not None and self.commands.asked:
            state, failure = "interrupted", None
        seconds = begun.record.seconds + monotonic() - begun.since
        ended = replace(begun.record, state=state, seconds=seconds, message=failure or "")
        self.records.put(stage.name, ended)
        self.watch.ended(stage.name, ended.state, ended.seconds, ended.message)

    def _finished(self, name: str) -> bool:
        stage = next(stage for stage in self.pipeline.stages if stage.name == name)
        valid = valid_stages(self.pipeline, self.records.rows, self.seed)
        return name in valid and (self.records.directory / stage.makes).exists()

    def _missing(self, stage: Stage) -> list[str]:
        """What it waits for."""
        return [name for name in self.pipeline.needs[stage.name] if not self._finished(name)]


def make_way(stage: Stage, made: Path, known: Record | None, read: Mapping[str, str]) -> None:
    """Delete what is stale, and what a killed run has left where the command does not go on by itself.

    `read` maps the stages whose results it is about to read to their runs. Raises RunError.
    """
    if not os.path.lexists(made):
        return
    if known is None or known.state == "blocked":
        raise RunError(
            f"`{made}` is there, and the stage `{stage.name}` that makes it has never run; choose another `--out`, or "
            "remove it"
        )
    words = stage.words(0)
    stale = known.state == "open" or known.of_other(read)
    if stale or words[0] == "apply" or (words[0] == "train" and words[1] not in TRAINERS):
        delete(made)


def delete(path: Path) -> None:
    """Remove a file, or a directory with all that is in it. Raises RunError."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot delete `{error.filename or path}`: {error.strerror}; remove it by hand") from error
