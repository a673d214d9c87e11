"""Runs the stages of a pipeline, seed by seed: what is finished is passed over, what fails leaves the others alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from time import monotonic

from surgery.errors import Fault
from surgery.mapping_source import to_yaml
from surgery.whole_file import write_whole
from surgery.wording import quoted, suggestion
from trainers.errors import ConfigError, RunError
from trainers.reproduce.child import python_words, run_child
from trainers.reproduce.pipeline import TRAINERS, Pipeline, Stage
from trainers.reproduce.records import Record, Records, State, read_records
from trainers.reproduce.versions import others, versions
from trainers.reproduce.watch import Watch

PIPELINE = "pipeline.yaml"
LOGS = "logs"
RUN = 6  # bytes of a run's name, which are drawn


@dataclass(frozen=True, slots=True)
class Standing:
    """How a stage of a seed stands: finished, failed, interrupted, waiting (for one that is not finished) or open.

    `stale` is one whose result, where it still lies there, is of another command or of results that are no more.
    """

    seed: int
    stage: Stage
    state: str
    seconds: float = 0.0
    message: str = ""
    stale: bool = False


def seed_directory(out: Path, seed: int) -> Path:
    """Where the stages of a seed work."""
    return out / f"seed-{seed}"


def standings(pipeline: Pipeline, out: Path, seeds: Sequence[int]) -> list[Standing]:
    """How every stage stands, from what is written down."""
    found = []
    for seed in seeds:
        directory = seed_directory(out, seed)
        rows = read_records(directory)
        valid = _valid(pipeline, rows, seed)
        finished: set[str] = set()
        for stage in pipeline.stages:
            each = _standing(pipeline, stage, seed, rows.get(stage.name), stage.name in valid)
            if each.state == "finished" and not (directory / stage.makes).exists():
                each = replace(each, state="open")
            missing = [name for name in pipeline.needs[stage.name] if name not in finished]
            if each.state == "open" and missing:
                each = replace(each, state="waiting", message=f"waits for {quoted(missing)}")
            finished |= {stage.name} if each.state == "finished" else set()
            found.append(each)
    return found


def _standing(pipeline: Pipeline, stage: Stage, seed: int, row: Record | None, valid: bool) -> Standing:
    """By its record alone."""
    if row is None:
        return Standing(seed, stage, "open")
    if row.digest != pipeline.digest(stage, seed):
        return Standing(seed, stage, "open", message="its command has changed since it ran", stale=True)
    if row.state in ("open", "blocked"):
        return Standing(seed, stage, "failed" if row.message else "open", row.seconds, row.message, stale=True)
    if row.state == "finished" and not valid:
        return Standing(seed, stage, "open", message="what it was made of has been made anew", stale=True)
    return Standing(seed, stage, "interrupted" if row.state == "begun" else row.state, row.seconds, row.message)


def _valid(pipeline: Pipeline, rows: Mapping[str, Record], seed: int) -> set[str]:
    """Stages that finished as they are now, of results that were never made again since, and those likewise.

    A result that is gone leaves what was made of it as valid as it was, until it is made anew.
    """
    found: set[str] = set()
    for stage in pipeline.stages:
        row, needs = rows.get(stage.name), pipeline.needs[stage.name]
        same = row is not None and row.state == "finished" and row.digest == pipeline.digest(stage, seed)
        if same and found.issuperset(needs) and row is not None and not row.of_other(_runs(rows, needs)):
            found.add(stage.name)
    return found


def _runs(rows: Mapping[str, Record], names: Sequence[str]) -> dict[str, str]:
    """The last run of each of these stages."""
    return {name: rows[name].run for name in names}


def run(
    pipeline: Pipeline, out: Path, seeds: Sequence[int], only: Sequence[str], fresh: bool, watch: Watch
) -> list[Standing]:
    """Run what is not finished, of the stages `only` or of all, and tell how every stage stands.

    A stage whose command has changed since it ran is refused; with `fresh` its result, and those of all stages after
    it, are deleted and made anew. Raises ConfigError, RunError, and KeyboardInterrupt or Terminated.
    """
    names = [stage.name for stage in pipeline.stages]
    unknown = [name for name in only if name not in names]
    if unknown:
        faults = [
            Fault(f"--only {name}", f"no such stage; {suggestion(name, names, 'the stages')}") for name in unknown
        ]
        raise ConfigError(faults)
    wanted = [stage for stage in pipeline.stages if not only or stage.name in only]
    for seed in seeds:
        _check_same(pipeline, seed_directory(out, seed), seed, fresh, watch)
    _write_pipeline(pipeline, out)
    before = {(each.seed, each.stage.name): each for each in standings(pipeline, out, seeds)}
    done = sum(before[seed, stage.name].state == "finished" for seed in seeds for stage in wanted)
    watch.begin(len(seeds) * len(wanted), done)
    for seed in seeds:
        with Records(seed_directory(out, seed), watch.note) as records:
            _write_files(pipeline, records.directory, seed)
            valid = _valid(pipeline, records.rows, seed)
            for text in others({name: records.rows[name].versions for name in names if name in valid}):
                watch.note(f"seed {seed}: {text}")
            for stage in wanted:
                _advance(pipeline, records, stage, seed, watch)
    return standings(pipeline, out, seeds)


def _advance(pipeline: Pipeline, records: Records, stage: Stage, seed: int, watch: Watch) -> None:
    """Run a stage, unless it is finished, or waits for one that is not."""
    if _finished(pipeline, records, stage.name, seed):
        return
    missing = [name for name in pipeline.needs[stage.name] if not _finished(pipeline, records, name, seed)]
    if missing:
        watch.stage(seed, stage.name, stage.title, "")
        watch.ended("waiting", 0.0, f"waits for {quoted(missing)}")
        return
    digest, known = pipeline.digest(stage, seed), records.rows.get(stage.name)
    spent = known.seconds if known is not None else 0.0
    read = _runs(records.rows, pipeline.needs[stage.name])
    watch.stage(seed, stage.name, stage.title, stage.shown(seed))
    if known is not None and known.state == "finished" and known.of_other(read):
        watch.note(f"`{stage.makes}` was made of an earlier run of {quoted(known.of_other(read))}; it is made anew")
    try:
        _make_way(stage, records.directory / stage.makes, known, read)
    except RunError as error:  # others may go on
        state: State = "blocked" if known is None or known.state == "blocked" else "open"
        records.put(stage.name, Record(state, digest, spent, str(error)))
        watch.ended("failed", 0.0, str(error))
        return
    begun = Record("begun", digest, spent, run=token_hex(RUN), read=read, versions=versions())
    records.put(stage.name, begun)
    began = monotonic()
    logs = records.directory / LOGS
    ended = replace(begun, state="interrupted")
    try:
        command = python_words([str(word) for word in stage.launch], stage.words(seed))
        places = (logs / f"{stage.name}.txt", logs / f"{stage.name}.log")
        failure = run_child(command, records.directory, places, records.fd, watch.said)
        if failure is None and not (records.directory / stage.makes).exists():
            failure = f"it ended well, but `{stage.makes}` is not there; mend `makes` in the pipeline"
        ended = replace(ended, state="finished" if failure is None else "failed", message=failure or "")
    except RunError as error:
        ended = replace(ended, state="failed", message=str(error))
    finally:
        ended = replace(ended, seconds=spent + monotonic() - began)
        records.put(stage.name, ended)
        watch.ended(ended.state, ended.seconds, ended.message)


def _finished(pipeline: Pipeline, records: Records, name: str, seed: int) -> bool:
    stage = next(stage for stage in pipeline.stages if stage.name == name)
    return name in _valid(pipeline, records.rows, seed) and (records.directory / stage.makes).exists()


def _make_way(stage: Stage, made: Path, known: Record | None, read: Mapping[str, str]) -> None:
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
        _delete(made)


def _check_same(pipeline: Pipeline, directory: Path, seed: int, fresh: bool, watch: Watch) -> None:
    """Refuse stages that ran as another command; or delete what they made, and all that was made of it.

    All are marked before anything goes, the last of them first: a kill leaves some whose commands have changed still,
    or all of them open, and never a result of what is no more that passes for finished.
    """
    rows = read_records(directory)
    changed = [
        stage.name
        for stage in pipeline.stages
        if stage.name in rows and rows[stage.name].digest != pipeline.digest(stage, seed)
    ]
    if not changed:
        return
    stale = {*changed, *(after for name in changed for after in pipeline.after(name))}
    again = [stage.name for stage in pipeline.stages if stage.name in stale and stage.name in rows]
    if not fresh:
        raise RunError(
            f"`{directory}`: since they ran, the commands of {quoted(changed)} have changed; use the pipeline as it "
            f"was (`{directory.parent / PIPELINE}`), another `--out`, or `--fresh` to delete and make anew what "
            f"{quoted(again)} made"
        )
    with Records(directory, watch.note) as records:
        stages = [stage for stage in pipeline.stages if stage.name in again]
        for stage in reversed(stages):
            records.put(stage.name, Record("open", pipeline.digest(stage, seed)))
        for stage in stages:
            _delete(directory / stage.makes)


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot delete `{error.filename or path}`: {error.strerror}; remove it by hand") from error


def _write_pipeline(pipeline: Pipeline, out: Path) -> None:
    """Keep the pipeline beside its results."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / PIPELINE, pipeline.text.encode())
    except OSError as error:
        raise RunError(f"cannot write to `{out}`: {error.strerror}; choose another `--out`") from error


def _write_files(pipeline: Pipeline, directory: Path, seed: int) -> None:
    try:
        for name in pipeline.files:
            content = to_yaml(pipeline.file(name, seed)).encode()
            path = directory / name
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, content)
    except OSError as error:
        raise RunError(f"cannot write to `{directory}`: {error.strerror}; make room, and run it again") from error
