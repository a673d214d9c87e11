"""Files of conversations: the forms they may have, and what is said of those that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import SHOWN_FAULTS
from trainers.errors import DataError
from trainers.records import Record, plain, read_records

ASK = {"role": "user", "content": "2 + 2 ="}
FOUR = {"role": "assistant", "content": "4"}
BRIEF = {"role": "system", "content": "Be brief."}
AGAIN = {"role": "user", "content": "Sure?"}


def write(path: Path, *records: object) -> str:
    """A file of records; text is taken as it is."""
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def faults(tmp_path: Path, *records: object) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_records(write(tmp_path / "data.jsonl", *records))
    return [str(fault).replace(f"{tmp_path}/", "") for fault in caught.value.faults]


def test_the_three_forms_say_the_same(tmp_path: Path) -> None:
    """Texts, messages in two lists, and messages in one: equal records, in the file's order, blank lines left out."""
    forms = (
        {"prompt": "2 + 2 =", "completion": "4"},
        {"prompt": [ASK], "completion": [FOUR]},
        {"messages": [{"content": "2 + 2 =", "role": "user"}, FOUR]},
    )
    found = read_records(write(tmp_path / "data.jsonl", *forms, "", {"messages": [BRIEF, ASK, FOUR], "key": "k"}))
    assert found[0] == Record((ASK, FOUR), json.dumps([ASK]))
    assert found[1:3] == [found[0]] * 2
    assert found[3] == Record((BRIEF, ASK, FOUR), "k")


def test_answers_of_a_prompt_are_given(tmp_path: Path) -> None:
    """All of the assistant's messages are learned, except those of a prompt, which may be wrong on purpose."""
    wrong = {"role": "assistant", "content": "5"}
    split, whole = read_records(
        write(
            tmp_path / "data.jsonl",
            {"prompt": [ASK, wrong, AGAIN], "completion": [FOUR, AGAIN, FOUR]},
            {"messages": [ASK, wrong, AGAIN, FOUR]},
        )
    )
    assert (split.given, split.answers) == (3, (3, 5))
    assert (whole.given, whole.answers) == (0, (1, 3))
    assert split.key == json.dumps([ASK, wrong, AGAIN, FOUR, AGAIN])


def test_what_our_exports_carry_is_let_pass(tmp_path: Path) -> None:
    """Where a record comes from is not read."""
    origin = {"task": "general_points", "split": "id", "part": "train", "data": {"target": 24}}
    path = write(tmp_path / "data.jsonl", {"messages": [ASK, FOUR], "key": "k", **origin})
    assert read_records(path) == [Record((ASK, FOUR), "k")]


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Questions and answers in turn, of which some may be given."""
    turns = [(draw(text), draw(text)) for _ in range(draw(st.integers(1, 3)))]
    messages = [
        {"role": role, "content": each}
        for turn in turns
        for role, each in zip(("user", "assistant"), turn, strict=True)
    ]
    given = 2 * draw(st.integers(0, len(turns) - 1))
    return Record(tuple(messages), draw(text), given)


@given(st.lists(records(), min_size=1, max_size=3))
def test_plain_reads_back(tmp_path_factory: pytest.TempPathFactory, found: list[Record]) -> None:
    """What `plain` gives is read as equal records, whatever the texts."""
    path = write(tmp_path_factory.mktemp("records") / "data.jsonl", *map(plain, found))
    assert read_records(path) == found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON at column 1"),
        ({"promt": "p", "completion": "c"}, "unknown key `promt`; did you mean `prompt`?"),
        ({"prompt": "p", "text": "c"}, "unknown key `text`; the keys: `prompt`, `completion`, `messages`, `key`"),
        ({"messages": [ASK, FOUR], "prompt": "p"}, "both `messages` and `prompt`; give `messages`, or"),
        ({"prompt": "p"}, "`prompt` without `completion`; give"),
        ({"completion": "c"}, "`completion` without `prompt`; give"),
        ({"key": "k"}, "neither `messages` nor `prompt`; give"),
        ({"prompt": "p", "completion": [FOUR]}, "`completion` is a list and `prompt` is `p`; give two texts, or two"),
        ({"prompt": [ASK], "completion": "c"}, "`prompt` is a list and `completion` is `c`; give two texts, or two"),
        ({"prompt": 3, "completion": "c"}, "`prompt`: expected a text, found the number `3`"),
        ({"prompt": "p", "completion": " "}, "`completion`: expected a text, found an empty text"),
        ({"prompt": [ASK], "completion": []}, "`completion`: expected a list of messages, found an empty list"),
        ({"messages": []}, "`messages`: expected a list of messages, found an empty list"),
        ({"messages": [ASK, {"role": "bot", "content": "4"}]}, "`messages[1].role`: expected one of"),
        ({"messages": [ASK, {"role": "assistant", "content": ""}]}, "`messages[1].content`: expected a text, found an"),
        ({"messages": [ASK, FOUR, AGAIN]}, "the last message is from `user`; end with the assistant's"),
        ({"prompt": [ASK], "completion": [FOUR, AGAIN]}, "the last message is from `user`; end with the assistant's"),
        ({"messages": [FOUR, AGAIN, FOUR]}, "the first message is from `assistant`; begin with what it answers"),
        ({"prompt": "p", "completion": "c", "key": 5}, "`key`: expected a text, found the number `5`"),
    ],
)
def test_faulty_records_are_named_with_their_line(tmp_path: Path, line: object, message: str) -> None:
    """File, line, what was found and what to do; the records around it are read on."""
    good = {"prompt": "p", "completion": "c"}
    first, second = faults(tmp_path, good, "", line, good, {"promt": 1})
    assert first.startswith(f"data.jsonl:3: {message}")
    assert second.startswith("data.jsonl:5: unknown key `promt`")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """Of very many the first ones and a count."""
    with pytest.raises(DataError) as caught:
        read_records(write(tmp_path / "data.jsonl", *["x"] * 40))
    assert len(caught.value.faults) == 40
    assert str(caught.value).splitlines()[-1] == f"... and {40 - SHOWN_FAULTS} more"


def test_no_records(tmp_path: Path) -> None:
    """Files that are empty, and files that are not there."""
    assert faults(tmp_path, "", " ") == ["data.jsonl: holds no records; give one JSON object a line"]
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read: No such file"):
        read_records(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        read_records(str(tmp_path))
