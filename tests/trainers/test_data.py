"""Which problems a run sees: parts and files held apart, all of it from the seed, and written out as it is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import TaskError
from evalkit.task import PARTS, Example
from evalkit.tasks import make_task
from surgery.wording import show
from trainers.config import Data, PpoConfig, SftConfig, TaskData
from trainers.data import (
    DEFAULT,
    accuracy_problems,
    check_apart,
    digest,
    export,
    held_out_records,
    problems,
    success_problems,
    training_records,
)
from trainers.errors import DataError, RunError
from trainers.records import Record, read_records

HANDS: dict[str, Any] = {"task": "general_points"}


def sft(data: dict[str, Any], **more: Any) -> SftConfig:
    return SftConfig.model_validate({"model": "m", "out": "o", "data": data, **more})


def ppo(data: dict[str, Any], **more: Any) -> PpoConfig:
    return PpoConfig.model_validate({"model": "m", "out": "o", "data": data, **more}, strict=False)


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def sums(tmp_path: Path) -> Callable[..., str]:
    """Writes a file of sums for the task `jsonl`."""

    def written(name: str, numbers: range) -> str:
        return write(tmp_path / name, *({"prompt": f"{i} + {i} =", "reference": 2 * i} for i in numbers))

    return written


def pairs(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"{i} + {i} =", "completion": str(2 * i)} for i in numbers]


def test_a_task_teaches_its_reference_answers() -> None:
    """Training records are the questions of the part `train` with right answers, under the examples' keys."""
    task = make_task("general_points", {})
    examples = task.examples("ood", 5, 3, "train")
    records = training_records(Data(**HANDS, split="ood", n=5), seed=3)
    assert [record.key for record in records] == [example.key for example in examples]
    for record, example in zip(records, examples, strict=True):
        assert record.messages[:-1] == task.prompt(example.data)
        assert record.messages[-1]["role"] == "assistant"
        assert task.grade(example.data, record.messages[-1]["content"]).correct
        assert record.answers == (1,)


def test_a_thousand_by_default() -> None:
    """Where the configuration does not say how many."""
    assert len(training_records(Data(**HANDS), 0)) == DEFAULT == 1000
    assert len(problems(TaskData(**HANDS), 0)[1]) == DEFAULT


def test_the_seed_decides() -> None:
    """The same seed gives the same records, another one others."""
    data = Data(**HANDS, n=20)
    assert training_records(data, 1) == training_records(data, 1)
    assert training_records(data, 1) != training_records(data, 2)


def test_a_file_keeps_its_order(tmp_path: Path) -> None:
    """The first n records, or all."""
    path = write(tmp_path / "data.jsonl", *pairs(3, 1, 2))
    assert [r.messages[1]["content"] for r in training_records(Data(file=path), 0)] == ["6", "2", "4"]
    assert [r.messages[1]["content"] for r in training_records(Data(file=path, n=2), 0)] == ["6", "2"]


@pytest.mark.parametrize("task", ["general_points", "matrix_rank", "determinant"])
def test_no_run_is_measured_on_what_it_learns(task: str) -> None:
    """What is learned, played, measured and tested shares no key, whatever the splits and seeds."""
    made = make_task(task, {})
    n, keys = 60, {part: set[str]() for part in PARTS}
    for split in made.splits:
        data = {"task": task, "split": split, "n": n}
        config = sft(data, seed=1, held_out={"n": n, "id": data})
        keys["train"] |= {record.key for record in training_records(config.data, seed=0)}
        keys["validation"] |= {r.key for found in held_out_records(config).values() for r in found}
        rl = ppo(data, seed=2, success={"n": n, "splits": list(made.splits)})
        keys["rl"] |= {example.key for example in problems(rl.data, rl.seed)[1]}
        keys["validation"] |= {e.key for found in success_problems(rl).values() for e in found}
        keys["test"] |= {example.key for example in made.examples(split, n, seed=3)}
    assert all(keys.values())
    assert sum(map(len, keys.values())) == len(set.union(*keys.values()))


def test_hands_of_the_same_values_are_the_same_problem() -> None:
    """A king counts 13 out of distribution and 10 in it: what a hand comes to decides, not its cards."""
    held_out = held_out_records(sft(HANDS, held_out={"n": 300}))["ood"]
    train = [*training_records(Data(**HANDS), 0), *training_records(Data(**HANDS, split="mixed"), 0)]
    check_apart(train, {"ood": held_out})
    values = held_out[0].key
    twin = Record(({"role": "user", "content": "other cards"}, {"role": "assistant", "content": "x"}), values)
    with pytest.raises(DataError) as caught:
        check_apart([*train, twin], {"id": [], "ood": held_out})
    count = sum(record.key == values for record in held_out)
    assert str(caught.value) == (
        f"held_out.ood: {count} of 300 (such as the key `{values}`) are among the training records, by their keys; "
        "measure on other data, or leave these out of one of the two"
    )


def test_held_out_by_default() -> None:
    """Of a task its splits `id` and `ood`, whichever is learned; of a file nothing."""
    held_out = held_out_records(sft({**HANDS, "split": "faces_5", "n": 3}))
    assert {name: len(records) for name, records in held_out.items()} == {"id": 64, "ood": 64}
    expected = make_task("general_points", {}).examples("ood", 64, 0, "validation")
    assert [record.key for record in held_out["ood"]] == [example.key for example in expected]
    assert held_out_records(sft({"file": "not read"})) == {}


def test_held_out_data_that_are_given(tmp_path: Path) -> None:
    """They take the place of the default; a number of their own comes before the common one, which is not for files."""
    path = write(tmp_path / "data.jsonl", *pairs(1, 2, 3))
    config = sft(HANDS, held_out={"n": 5, "ood": {"file": path}})
    assert {name: len(records) for name, records in held_out_records(config).items()} == {"id": 5, "ood": 3}
    config = sft({"file": path}, held_out={"n": 2, "id": {"file": path}, "ood": {**HANDS, "n": 7}})
    assert {name: len(records) for name, records in held_out_records(config).items()} == {"id": 3, "ood": 7}
    few = sft(HANDS, held_out={"ood": {"file": path, "n": 4}})
    with pytest.raises(DataError, match=r"held_out.ood: `.*data.jsonl` has 3 records, and `n` is 4"):
        held_out_records(few)
    with pytest.raises(DataError, match=r"held_out.id: 3 of 3 \(such as the key .* are among the training records"):
        check_apart(training_records(config.data, 0), held_out_records(config))


def test_accuracy_is_measured_on_held_out_problems(tmp_path: Path, sums: Callable[..., str]) -> None:
    """On those of the held-out data that are a task's, from the same seed; never on what is learned."""
    path = write(tmp_path / "data.jsonl", *pairs(1, 2, 3))
    config = sft({**HANDS, "n": 9}, seed=2, held_out={"n": 5, "ood": {"file": path}}, accuracy={"n": 7})
    learned = training_records(config.data, config.seed)
    found = accuracy_problems(config, learned)
    assert {name: (task.name, len(examples)) for name, (task, examples) in found.items()} == {
        "id": ("general_points", 7)
    }
    examples = found["id"][1]
    assert [e.key for e in examples[:5]] == [record.key for record in held_out_records(config)["id"]]
    assert accuracy_problems(sft(HANDS), learned) == {}
    own = {"task": "jsonl", "parameters": {"id": sums("id", range(9)), "ood": sums("ood", range(8, 12))}}
    config = sft(own, held_out={"ood": {**own, "split": "ood"}}, accuracy={"n": 4})
    with pytest.raises(DataError, match=r"held_out.ood: 1 of 4 \(such as the key `8 \+ 8 =`\) are among the training"):
        accuracy_problems(config, training_records(config.data, config.seed))


def test_a_task_of_files_is_taken_whole(sums: Callable[..., str]) -> None:
    """The files of `jsonl` are the user's division: all of the one that is named, and nothing held out unasked."""
    files = {"id": sums("id", range(9)), "ood": sums("ood", range(100, 104))}
    data: dict[str, Any] = {"task": "jsonl", "parameters": files}
    assert sorted(r.messages[1]["content"] for r in training_records(Data(**data), 0)) == sorted(
        str(2 * i) for i in range(9)
    )
    assert len(training_records(Data(**data, n=4), 0)) == 4
    assert held_out_records(sft(data)) == {}
    config = sft(data, held_out={"ood": {**data, "split": "ood"}})
    assert {name: len(records) for name, records in held_out_records(config).items()} == {"ood": 4}
    task, played = problems(TaskData(**data), 0)
    assert (task.name, len(played)) == ("jsonl", 9)


def test_success_is_measured_on_other_files(sums: Callable[..., str]) -> None:
    """By default on every split but the one that is played; that one, and others that repeat it, are refused."""
    files = {"id": sums("id", range(9)), "ood": sums("ood", range(100, 104))}
    config = ppo({"task": "jsonl", "parameters": files})
    assert {split: len(found) for split, found in success_problems(config).items()} == {"ood": 4}
    named = ppo({"task": "jsonl", "parameters": files}, success={"splits": ["ood", "id"]})
    with pytest.raises(DataError, match=r"success.splits: of `id`, 9 of 9 .* are among those that are played, by"):
        success_problems(named)
    overlapping = ppo({"task": "jsonl", "parameters": {**files, "ood": sums("ood", range(8, 11))}})
    with pytest.raises(DataError, match=r"of `ood`, 1 of 3 \(such as the key `8 \+ 8 =`\) are among those"):
        success_problems(overlapping)


def test_success_by_default() -> None:
    """On the splits that the task scores, 64 problems each, from the part `validation`."""
    found = success_problems(ppo({**HANDS, "split": "faces_5"}, seed=4))
    task = make_task("general_points", {})
    assert found == {split: task.examples(split, 64, 4, "validation") for split in ("id", "ood")}


def test_fewer_problems_than_the_default() -> None:
    """A small part is taken whole, unless a number was asked for that it does not have."""
    small: dict[str, Any] = {**HANDS, "parameters": {"cards": 3}}
    n = len(problems(TaskData(**small), 0)[1])
    assert 0 < n < DEFAULT
    assert len(problems(TaskData(**small, n=n), 0)[1]) == n
    with pytest.raises(DataError) as caught:
        problems(TaskData(**small, n=n + 1), 0)
    assert str(caught.value) == (
        f"data: the part `rl` of the split `id` of general_points has no more than {n} problems, and `n` is {n + 1}; "
        f"ask for at most {n}, or choose other parameters"
    )
    with pytest.raises(DataError, match=r"held_out.id: the part `validation` .* and `n` is 64"):
        held_out_records(sft(small))
    with pytest.raises(TaskError, match="the part `rl` of the split `id` has no examples"):
        problems(TaskData(task="general_points", parameters={"cards": 2, "target": 1000}), 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"task": "general_point"}, "data.task: unknown task `general_point`; did you mean `general_points`?"),
        (
            {"task": "general_points", "parameters": {"cards": 9}},
            "data.parameters.cards: found `9`; expected 6 or less",
        ),
        ({"task": "general_points", "parameters": {"card": 4}}, "data.parameters.card: unknown key"),
    ],
)
def test_faults_of_a_task_are_told_in_the_words_of_a_configuration(data: dict[str, Any], message: str) -> None:
    """The name of the key, not of the option of `surgery eval`."""
    with pytest.raises(DataError) as caught:
        training_records(Data(**data), 0)
    assert str(caught.value).startswith(message)
    assert "--set" not in str(caught.value)


def test_digest() -> None:
    """Equal records have equal digests; every field, and the order, counts. Examples have digests too."""
    records = [*training_records(Data(**HANDS, n=3), 0)]
    known = digest(records)
    assert known == digest(list(records))
    assert len(known) == 64
    first, *rest = records
    changed = [
        Record(first.messages, first.key + "x"),
        Record(first.messages[:-1], first.key),
        Record(first.messages, first.key, given=1),
        Record(({**first.messages[0], "role": "system"}, first.messages[1]), first.key),
    ]
    others = [digest([each, *rest]) for each in changed] + [digest(records[::-1]), digest(records[:2]), digest([])]
    assert len({known, *others}) == len(others) + 1
    assert digest(make_task("general_points", {}).examples("id", 2)) != digest([])


def test_digest_is_pinned() -> None:
    """The same on every platform: a resumed run compares it."""
    record = Record(({"role": "user", "content": "é"}, {"role": "assistant", "content": "4"}), "k")
    assert digest([record]).startswith("bc6dd0c0602a8b95")
    assert digest([Example("id", 0, "k", {"b": 1, "a": [2]})]) == digest([Example("id", 0, "k", {"a": [2], "b": 1})])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_export_of_fine_tuning(tmp_path: Path) -> None:
    """A file for each use, which reads back as the records that a run would see, with where each comes from."""
    config = sft({**HANDS, "n": 5}, seed=2, held_out={"n": 3})
    assert export(config, tmp_path / "new" / "out") == {"train": 5, "id": 3, "ood": 3}
    out = tmp_path / "new" / "out"
    assert sorted(path.name for path in out.iterdir()) == ["id.jsonl", "ood.jsonl", "train.jsonl"]
    assert read_records(str(out / "train.jsonl")) == training_records(config.data, 2)
    assert {name: read_records(str(out / f"{name}.jsonl")) for name in ("id", "ood")} == held_out_records(config)
    row = rows(out / "ood.jsonl")[0]
    assert {key: row[key] for key in ("task", "split", "part")} == {
        "task": "general_points", "split": "ood", "part": "validation"
    }  # fmt: skip
    assert row["data"]["rule"] == {"J": 11, "Q": 12, "K": 13}
    again = sft({"file": str(out / "train.jsonl")}, held_out={"id": {"file": str(out / "id.jsonl")}})
    check_apart(training_records(again.data, 0), held_out_records(again))


def test_export_of_problems(tmp_path: Path) -> None:
    """What is played and what success is measured on, each with its reference answer."""
    config = ppo({**HANDS, "n": 4}, success={"n": 2})
    assert export(config, tmp_path) == {"rl": 4, "id": 2, "ood": 2}
    task, played = problems(config.data, 0)
    found = rows(tmp_path / "rl.jsonl")
    assert [row["data"] for row in found] == [example.data for example in played]
    assert {row["part"] for row in found} == {"rl"}
    records = read_records(str(tmp_path / "rl.jsonl"))
    assert [record.key for record in records] == [example.key for example in played]
    assert all(
        task.grade(example.data, record.messages[-1]["content"]).correct
        for record, example in zip(records, played, strict=True)
    )


def test_export_of_files(tmp_path: Path) -> None:
    """Records of a file are written as they were read, those with given answers too."""
    turns = [{"role": role, "content": text} for role, text in (("user", "?"), ("assistant", "5"), ("user", "Sure?"))]
    record = {"prompt": turns, "completion": [{"role": "assistant", "content": "é"}], "key": "k"}
    path = write(tmp_path / "mine.jsonl", *pairs(1), record)
    assert export(sft({"file": path}), tmp_path / "out") == {"train": 2}
    assert read_records(str(tmp_path / "out" / "train.jsonl")) == read_records(path)


def test_export_overwrites_nothing(tmp_path: Path) -> None:
    """Where one of the files is there, none is written; the same where writing fails half-way."""
    config = sft({**HANDS, "n": 2}, held_out={"n": 2})
    (tmp_path / "ood.jsonl").write_text("mine")
    with pytest.raises(RunError) as caught:
        export(config, tmp_path)
    assert str(caught.value) == (
        f"{show(str(tmp_path / 'ood.jsonl'))} exist already; choose another `--out`, or remove them"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["ood.jsonl"]
    (tmp_path / "ood.jsonl").unlink()
    (tmp_path / ".ood.jsonl.partial").mkdir()
    with pytest.raises(RunError, match=r"cannot write `.*ood.jsonl.partial`: Is a directory; make room, or choose"):
        export(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".ood.jsonl.partial"]


def test_export_checks_what_a_run_would(tmp_path: Path, sums: Callable[..., str]) -> None:
    """Data that are not held apart are not written, nor are splits that no file can be named for."""
    path = write(tmp_path / "data.jsonl", *pairs(1, 2))
    with pytest.raises(DataError, match="are among the training records"):
        export(sft({"file": path}, held_out={"id": {"file": path}}), tmp_path / "out")
    files = {"id": sums("id", range(3)), "rl": sums("rl", range(5, 7)), "../x": sums("x", range(8, 9))}
    with pytest.raises(DataError, match=r"success.splits: found `rl`, `../x`, which no file can be named for"):
        export(ppo({"task": "jsonl", "parameters": files}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
