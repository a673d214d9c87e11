from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from evalkit.errors import TaskError
from evalkit.json_lines import MAX_LINE
from evalkit.task import Task, Turn
from evalkit.tasks.jsonl import Jsonl
from surgery.errors import SHOWN_FAULTS


def write(path: Path, *records: object) -> str:
    """A file of records; text is taken as it is."""
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def only(tmp_path: Path, record: dict[str, Any], **parameters: Any) -> tuple[Jsonl, Any]:
    """The task of one record, and its data."""
    task = Jsonl(id=write(tmp_path / "one.jsonl", record), **parameters)
    return task, task.examples("id", 1)[0].data


def faults(tmp_path: Path, *records: object, **parameters: Any) -> str:
    with pytest.raises(TaskError) as caught:
        Jsonl(id=write(tmp_path / "data.jsonl", *records), **parameters).examples("id", 1)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.fixture
def hundred(tmp_path: Path) -> str:
    return write(tmp_path / "hundred.jsonl", *({"prompt": f"q{i}", "reference": i} for i in range(100)))


def test_more_examples_begin_with_the_same(hundred: str):
    """A seed gives an order of the whole file, without replacement; n cuts it, and larger n take all."""
    task = Jsonl(id=hundred)
    every = task.examples("id", None)
    assert sorted(example.key for example in every) == sorted(f"q{i}" for i in range(100))
    assert [example.index for example in every] == list(range(100))
    assert task.examples("id", 30) == every[:30]
    assert task.examples("id", 234) == every
    assert task.examples("id", 100, seed=1) != every
    assert [example.key for example in every[:4]] == ["q28", "q11", "q93", "q1"]  # the same on every platform


def test_parts_do_not_apply(hundred: str):
    """A part other than the default would silently be the whole file."""
    task = Jsonl(id=hundred)
    assert task.examples("id", 5, part="test") == task.examples("id", 5)
    with pytest.raises(TaskError, match=r"found the part `train`, but parts do not apply to your own files; leave out"):
        task.examples("id", 5, part="train")
    assert not task.divided
    assert Task.divided


def test_every_further_name_is_a_split(tmp_path: Path, hundred: str):
    """`ood` is there if a file is given, and so is any other name; unknown splits are refused."""
    other = write(tmp_path / "other.jsonl", {"prompt": "p", "reference": "r"})
    task = Jsonl(id=hundred, hard=other)
    assert list(task.splits) == ["id", "hard"]
    assert task.examples("hard", 9)[0].key == "p"
    assert list(Jsonl(id=hundred, ood=other).splits) == ["id", "ood"]
    with pytest.raises(TaskError, match=r"no split `hrad`; did you mean `hard`"):
        task.examples("hrad", 1)


def test_identity_follows_the_content_of_the_files(tmp_path: Path, hundred: str):
    """Results are kept under digests and parameters: a moved file is the same, a changed one is not."""
    before = Jsonl(id=hundred).identity
    moved = Path(hundred).rename(tmp_path / "moved.jsonl")
    assert before == {"grader": "exact", "files": {"id": blake3(moved.read_bytes()).hexdigest()}}
    assert Jsonl(id=str(moved)).identity == before
    assert Jsonl(id=str(moved), grader="numeric").identity != before
    assert Jsonl(id=str(moved), ood=str(moved)).identity != before
    moved.write_text(moved.read_text() + "\n")
    assert Jsonl(id=str(moved)).identity != before
    json.dumps(before)


def test_prompt_and_retry(tmp_path: Path):
    """A prompt is one user message; a failed answer and the reason follow it, and the reason keeps the reference."""
    task, data = only(tmp_path, {"prompt": "What?", "reference": "secret"})
    assert task.prompt(data) == ({"role": "user", "content": "What?"},)
    grade = task.grade(data, "guess")
    again = task.prompt(data, [Turn("guess", grade)])
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert "secret" not in again[-1]["content"]
    assert task.prompt(data, question="Own?")[0]["content"] == "Own?"


def test_messages_come_before_the_question(tmp_path: Path):
    """Earlier messages stay; a template's text takes the place of the last one; the key tells them apart."""
    system = {"role": "system", "content": "Be brief."}
    task, data = only(tmp_path, {"messages": [system, {"role": "user", "content": "What?"}], "reference": "x"})
    assert task.prompt(data) == (system, {"role": "user", "content": "What?"})
    assert task.prompt(data, question="Own?") == (system, {"role": "user", "content": "Own?"})
    assert "Be brief." in task.key(data)
    assert task.grade(data, "x").correct


def test_choices_are_shown_and_graded(tmp_path: Path):
    """The model sees letters and texts; a reference by text means the same as by letter."""
    record = {"prompt": "A city?", "choices": ["Nile", "Rome"], "reference": "Rome"}
    task, data = only(tmp_path, record)
    assert task.question(data).startswith("A city?\n\nA. Nile\nB. Rome\n\n")
    assert task.grade(data, "(B)").correct
    assert task.grade(data, "A").kind == "wrong value"
    assert task.reference(data) == "B"


def test_numbers_are_never_rounded(tmp_path: Path):
    """Numbers of the file are compared as they are written there, a record's own grader before the task's."""
    task, data = only(tmp_path, {"prompt": "p", "reference": [0.1, 9007199254740993]}, grader="numeric")
    assert task.reference(data) == "0.1"
    assert task.grade(data, "9007199254740993").correct
    assert not task.grade(data, "9007199254740992").correct
    task, data = only(tmp_path, {"prompt": "p", "reference": 3.50, "grader": "exact", "key": "k"}, grader="numeric")
    assert not task.grade(data, "7/2").correct
    assert task.key(data) == "k"
    assert json.loads(json.dumps(data)) == data


def test_pattern_has_no_reference_answer(tmp_path: Path):
    """The loss of a pattern would mean nothing."""
    task, data = only(tmp_path, {"prompt": "p", "reference": "a|b"}, grader="regex")
    assert task.grade(data, "xb").correct
    with pytest.raises(TaskError, match="is a pattern"):
        task.reference(data)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON at column 1: "),
        ("[1]", "expected a JSON object, found a list"),
        ("3", "expected a JSON object, found the number `3`"),
        ("[" * 100_000, "nests too deeply"),
        ('{"prompt": "p", "reference": NaN}', "NaN is no number"),
        ('{"prompt": "p", "reference": 1, "prompt": "q"}', "`prompt` occurs twice"),
        ('{"prompt": "\\ud800", "reference": 1}', "surrogate"),
        ({"promt": "p", "reference": 1}, "unknown key `promt`; did you mean `prompt`?"),
        ({"prompt": "p", "answer": 1}, "unknown key `answer`; the keys: `prompt`, `messages`"),
        ({"prompt": "p"}, "no `reference`"),
        ({"reference": 1}, "neither `prompt` nor `messages`"),
        ({"prompt": "p", "messages": [], "reference": 1}, "both `prompt` and `messages`"),
        ({"prompt": 7, "reference": 1}, "`prompt`: expected a text, found the number `7`"),
        ({"prompt": " ", "reference": 1}, "`prompt`: expected a text, found an empty text"),
        ({"prompt": "p", "reference": None}, "`reference`: expected a text or a number, found nothing"),
        ({"prompt": "p", "reference": True}, "found `true`"),
        ({"prompt": "p", "reference": []}, "found an empty list"),
        ({"prompt": "p", "reference": "x", "grader": "numeric"}, "`reference` `x` is no number"),
        ({"prompt": "p", "reference": "(", "grader": "regex"}, "is no regular expression"),
        ({"prompt": "p", "reference": "x", "grader": "exat"}, "unknown grader `exat`; did you mean `exact`?"),
        ({"prompt": "p", "reference": "x", "grader": "choice"}, "no `choices`"),
        ({"prompt": "p", "reference": "A", "choices": ["x"]}, "a list of 2 to 26 texts, found a list of 1"),
        ({"prompt": "p", "reference": "A", "choices": ["x", " x"]}, "expected texts that differ"),
        ({"prompt": "p", "reference": "C", "choices": ["x", "y"]}, "is none of the choices; give a letter from A to B"),
        ({"prompt": "p", "reference": ["A", "B"], "choices": ["x", "y"]}, "expected one choice, found a list"),
        ({"prompt": "p", "reference": 1, "key": 5}, "`key`: expected a text"),
        ({"messages": [], "reference": 1}, "expected a list of messages"),
        ({"messages": [{"role": "user"}], "reference": 1}, "`messages[0]`: expected an object"),
        ({"messages": [{"role": "bot", "content": "x"}], "reference": 1}, "`messages[0].role`: expected one of"),
        ({"messages": [{"role": "user", "content": 1}], "reference": 1}, "`messages[0].content`: expected a text"),
        ({"messages": [{"role": "assistant", "content": "x"}], "reference": 1}, "the last is from `assistant`"),
        ('{"prompt": "' + "p" * MAX_LINE + '", "reference": 1}', "longer than 1,000,000 bytes"),
    ],
)
def test_faulty_records_are_named_with_their_line(tmp_path: Path, line: object, message: str):
    """File, line, what was found and what was expected; the records around it are read on."""
    good = {"prompt": "good", "reference": 1}
    text = faults(tmp_path, good, "", line, good, {"promt": 1})
    first, second = text.splitlines()
    assert first.startswith("data.jsonl:3: ")
    assert message in first
    assert second.startswith("data.jsonl:5: unknown key `promt`")


def test_all_faults_of_all_files_are_told_at_once(tmp_path: Path):
    """Every split's faults together, of very many the first ones and a count; mistyped parameters are recognised."""
    other = write(tmp_path / "other.jsonl", {"prompt": "p"})
    text = faults(tmp_path, *["x"] * 40, ood=other, gradr="numeric")
    assert len(text.splitlines()) == SHOWN_FAULTS + 1
    assert text.splitlines()[-1] == f"... and {42 - SHOWN_FAULTS} more"
    text = faults(tmp_path, {"prompt": "p"}, ood=other, gradr="numeric")
    assert [line.split(":")[0] for line in text.splitlines()] == ["data.jsonl", "other.jsonl", "numeric"]
    assert "did you mean `grader`?" in text
    with pytest.raises(TaskError, match="No such file"):
        _ = Jsonl(id=str(tmp_path / "none.jsonl")).identity
    with pytest.raises(TaskError, match=r"~nobody_at_all/x.jsonl: cannot be read: No such file"):
        _ = Jsonl(id="~nobody_at_all/x.jsonl").identity


def test_one_question_has_one_reference(tmp_path: Path):
    """The same question with another reference is a fault; with the same one it may occur again."""
    text = faults(tmp_path, {"prompt": "p", "reference": "a"}, "", {"prompt": "p", "reference": "b"})
    assert text.startswith("data.jsonl:3: the same question as in line 1")
    task = Jsonl(id=write(tmp_path / "twice.jsonl", *[{"prompt": "p", "reference": "a"}] * 2))
    assert len(task.examples("id", None)) == 2


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file_is_a_fault(tmp_path: Path, content: bytes):
    """A file without records has nothing to score."""
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(TaskError, match="holds no records"):
        _ = Jsonl(id=str(tmp_path / "data.jsonl")).splits


def test_encodings(tmp_path: Path):
    """UTF-8 with or without its mark and any line ends are read; other encodings are named with their line."""
    path = tmp_path / "data.jsonl"
    path.write_bytes('\ufeff{"prompt": "é", "reference": 1}\r\n{"prompt": "b", "reference": 2}'.encode())
    assert sorted(example.key for example in Jsonl(id=str(path)).examples("id", None)) == ["b", "é"]
    path.write_bytes('{"prompt": "é", "reference": 1}'.encode("latin-1"))
    with pytest.raises(TaskError, match=r"data.jsonl:1: is not UTF-8 \(byte `0xe9` at 13\)"):
        _ = Jsonl(id=str(path)).splits
