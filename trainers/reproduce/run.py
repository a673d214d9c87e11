"""Runs the stages of a pipeline, seed by seed: what is finished is passed over, what fails leaves the others alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from surgery.errors import Fault
from surgery.mapping_source import to_yaml
from surgery.whole_file import write_whole
from surgery.wording import quoted, suggestion
from trainers.errors import ConfigError, RunError
from trainers.reproduce.commands import Commands
from trainers.reproduce.pipeline import Pipeline
from trainers.reproduce.records import Record, Records, read_records
from trainers.reproduce.seed import Seed, delete
from trainers.reproduce.standing import Standing, seed_directory, standings, valid_stages
from trainers.reproduce.versions import others
from trainers.reproduce.watch import Watch

PIPELINE = "pipeline.yaml"


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
    with Commands() as commands:
        for seed in seeds:
            with Records(seed_directory(out, seed), watch.note) as records:
                _write_files(pipeline, records.directory, seed)
                valid = valid_stages(pipeline, records.rows, seed)
                for text in others({name: records.rows[name].versions for name in names if name in valid}):
                    watch.note(f"seed {seed}: {text}")
                Seed(pipeline, records, seed, commands, watch).run(wanted)
    return standings(pipeline, out, seeds)


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
            delete(directory / stage.makes)


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
