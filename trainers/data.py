"""Which problems a run sees: those that it learns, those that it is measured on, never one of them twice.

A task's problems are divided into parts by their keys, for good: fine-tuning learns from `train`, the trainers that
learn from grades play `rl`, both are measured on `validation`, and `test` is left to `surgery eval`. Where the user's
own files are the data, they are the division, and keys are compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from evalkit.task import TEST, Example, Task
from surgery.errors import Fault
from surgery.wording import quoted, show
from trainers.config import Data, HeldOut, RlTraining, SftConfig, TaskData
from trainers.errors import DataError, RunError
from trainers.records import ANSWER, Record, plain, read_records
from trainers.tasks import configured_task

DEFAULT = 1000  # problems of a task, where a configuration does not say
TRAIN, RL, VALIDATION = "train", "rl", "validation"  # parts, see `evalkit.task.PARTS`
SPLITS = ("id", "ood")  # of held-out records, and the splits that they are by default
_REMEDY = "by their keys; measure on other data, or leave these out of one of the two"

_Sourced = Sequence[tuple[Record, Mapping[str, Any]]]  # records and where they come from, as an export says it


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Problems of a split, the task that grades them and the part they come from."""

    task: Task
    part: str
    examples: Sequence[Example]

    def sourced(self) -> _Sourced:
        """As records that answer with the reference, each with where it comes from. Raises TaskError."""
        found = []
        for example in self.examples:
            answer = {"role": ANSWER, "content": self.task.reference(example.data)}
            origin = {"task": self.task.name, "split": example.split, "part": self.part, "data": dict(example.data)}
            found.append((Record((*self.task.prompt(example.data), answer), example.key), origin))
        return found


def training_records(data: Data, seed: int) -> list[Record]:
    """What fine-tuning learns, in an order that the seed gives, or that of the file.

    Raises TaskError and DataError.
    """
    return [record for record, _ in _training(data, seed)]


def held_out_records(config: SftConfig) -> dict[str, list[Record]]:
    """What fine-tuning is measured on: `id` and `ood`, as far as they are given or the task has them.

    Raises TaskError and DataError.
    """
    return {name: [record for record, _ in sourced] for name, sourced in _held_out(config).items()}


def accuracy_problems(config: SftConfig, learned: Iterable[Record]) -> dict[str, tuple[Task, list[Example]]]:
    """The tasks among the held-out data, with the problems that `config.accuracy` is measured on; none are `learned`.

    Raises TaskError and DataError.
    """
    if config.accuracy is None:
        return {}
    found = {}
    for name, data in _wanted(config.data, config.held_out).items():
        if data.task is not None:
            drawn = _draw(data, VALIDATION, config.accuracy.n, config.seed, "accuracy")
            found[name] = drawn.task, list(drawn.examples)
    check_apart(learned, {name: examples for name, (_, examples) in found.items()})
    return found


def check_apart(train: Iterable[Record], held_out: Mapping[str, Iterable[Record | Example]]) -> None:
    """Raise DataError where a held-out record or problem has the key of a training record."""
    learned = {record.key for record in train}
    faults = [
        Fault(f"held_out.{name}", f"{shared} are among the training records, {_REMEDY}")
        for name, records in held_out.items()
        if (shared := _shared(learned, records))
    ]
    if faults:
        raise DataError(faults)


def problems(data: TaskData, seed: int) -> tuple[Task, list[Example]]:
    """The task and its problems that are played. Raises TaskError and DataError."""
    drawn = _draw(data, RL, data.n, seed, "data")
    return drawn.task, list(drawn.examples)


def success_problems(config: RlTraining) -> dict[str, list[Example]]:
    """The problems that success is measured on, by split; none of them is played. Raises TaskError and DataError."""
    return {split: list(drawn.examples) for split, drawn in _success(config).items()}


def digest(items: Iterable[Record] | Iterable[Example]) -> str:
    """The BLAKE3 digest of the items' content, in their order: 64 hexadecimal digits."""
    content = blake3()
    for item in items:
        content.update(json.dumps(asdict(item), sort_keys=True).encode() + b"\n")
    return content.hexdigest()


def export(config: SftConfig | RlTraining, out: Path) -> dict[str, int]:
    """Write all that a run would see as files of records, for `read_records`, and tell how many each holds.

    `train.jsonl`, `id.jsonl` and `ood.jsonl` of fine-tuning; otherwise `rl.jsonl` and a file for each split that
    success is measured on. Raises TaskError and DataError, and RunError where a file exists or cannot be written:
    then no file is.
    """
    files: dict[str, _Sourced]
    if isinstance(config, SftConfig):
        files = {TRAIN: _training(config.data, config.seed), **_held_out(config)}
        held_out = {name: [record for record, _ in files[name]] for name in files if name != TRAIN}
        check_apart([record for record, _ in files[TRAIN]], held_out)
    else:
        success = {split: drawn.sourced() for split, drawn in _success(config).items()}
        strange = [split for split in success if split == RL or Path(split).name != split]
        if strange:
            raise DataError([Fault("success.splits", f"found {quoted(strange)}, which no file can be named for")])
        files = {RL: _draw(config.data, RL, config.data.n, config.seed, "data").sourced(), **success}
    _write({out / f"{name}.jsonl": sourced for name, sourced in files.items()})
    return {name: len(sourced) for name, sourced in files.items()}


def _training(data: Data, seed: int) -> _Sourced:
    if data.file is not None:
        return _records(data, "data")
    return _draw(data, TRAIN, data.n, seed, "data").sourced()


def _records(data: Data, where: str) -> _Sourced:
    """The first n records of a file, or all. Raises DataError where there are fewer."""
    assert data.file is not None
    records = read_records(data.file)
    if data.n is not None and len(records) < data.n:
        message = f"`{data.file}` has {len(records):,} records, and `n` is {data.n:,}; ask for at most {len(records):,}"
        raise DataError([Fault(where, message)])
    return [(record, {}) for record in records[: data.n]]


def _held_out(config: SftConfig) -> dict[str, _Sourced]:
    wanted = _wanted(config.data, config.held_out)
    found: dict[str, _Sourced] = {}
    for name, data in wanted.items():
        n = data.n or config.held_out.n
        if data.file is not None:
            found[name] = _records(data, f"held_out.{name}")
        else:
            found[name] = _draw(data, VALIDATION, n, config.seed, f"held_out.{name}").sourced()
    return found


def _wanted(data: Data, held_out: HeldOut) -> dict[str, Data]:
    """What is held out under which name: what is given, and otherwise the splits of a task that keeps parts."""
    given = {"id": held_out.id, "ood": held_out.ood}
    wanted = {name: each for name, each in given.items() if each is not None}
    if data.task is not None:
        task = _task(data, "data")
        if task.divided:
            own = {name: data.model_copy(update={"split": name, "n": None}) for name in SPLITS if name in task.splits}
            wanted = {**own, **wanted}
    return wanted


def _success(config: RlTraining) -> dict[str, _Drawn]:
    data, wanted = config.data, config.success
    task = _task(data, "data")
    splits = wanted.splits or [split for split in task.scored if task.divided or split != data.split]
    found = {}
    for split in splits:
        each = data.model_copy(update={"split": split})
        found[split] = _draw(each, VALIDATION, wanted.n, config.seed, "success")
    if not task.divided:
        played = {example.key for example in problems(data, config.seed)[1]}
        faults = [
            Fault("success.splits", f"of `{split}`, {shared} are among those that are played, {_REMEDY}")
            for split, drawn in found.items()
            if (shared := _shared(played, drawn.examples))
        ]
        if faults:
            raise DataError(faults)
    return found


def _draw(data: Data | TaskData, part: str, n: int | None, seed: int, where: str) -> _Drawn:
    """Problems of a part, n or else as many of `DEFAULT` as there are; of a task without parts at most n, or all.

    Raises TaskError, and DataError where there are fewer than n.
    """
    task = _task(data, where)
    if not task.divided:
        return _Drawn(task, TEST, task.examples(data.split, n, seed, TEST))
    examples = task.examples(data.split, n or DEFAULT, seed, part, fewer=True)
    if n is not None and len(examples) < n:
        raise DataError(
            [
                Fault(
                    where,
                    f"the part `{part}` of the split `{data.split}` of {task.name} has no more than {len(examples):,} "
                    f"problems, and `n` is {n:,}; ask for at most {len(examples):,}, or choose other parameters",
                )
            ]
        )
    return _Drawn(task, part, examples)


def _shared(learned: set[str], items: Iterable[Record | Example]) -> str | None:
    """How many items have the key of something that is learned, and one of these keys."""
    keys = [item.key for item in items]
    shared = [key for key in keys if key in learned]
    return f"{len(shared):,} of {len(keys):,} (such as the key {show(shared[0])})" if shared else None


def _task(data: Data | TaskData, where: str) -> Task:
    assert data.task is not None
    return configured_task(data.task, data.parameters, where)


def _write(files: Mapping[Path, _Sourced]) -> None:
    """All files, or none. Raises RunError."""
    existing = [str(path) for path in files if os.path.lexists(path)]
    if existing:
        raise RunError(f"{quoted(existing)} exist already; choose another `--out`, or remove them")
    partial = {path: path.with_name(f".{path.name}.partial") for path in files}
    done: list[Path] = []
    try:
        for path, sourced in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = (json.dumps({**plain(record), **origin}, ensure_ascii=False) for record, origin in sourced)
            partial[path].write_text("".join(f"{row}\n" for row in rows), "utf-8")
        for path, temporary in partial.items():
            temporary.replace(path)
            done.append(path)
    except OSError as error:
        for path in (*partial.values(), *done):
            with suppress(OSError):
                path.unlink()
        raise RunError(
            f"cannot write `{error.filename}`: {error.strerror}; make room, or choose another `--out`"
        ) from error
