"""Reads records of prompts and references from a file of JSON lines, and finds everything that is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from blake3 import blake3

from evalkit import graders
from evalkit.graders import GraderName, choice
from evalkit.task import Data
from surgery.errors import Fault
from surgery.wording import show, suggestion

MAX_LINE = 1_000_000  # bytes; a longer prompt fits no model's context

_ROLES = ("system", "user", "assistant")
_KEYS = ("prompt", "messages", "reference", "choices", "key", "grader")


@dataclass(frozen=True, slots=True)
class Records:
    """What a file holds: the data of its examples in the file's order, and the BLAKE3 digest of its bytes.

    Each has `prompt` or `messages`, `reference` (a list of texts), `grader`, and perhaps `choices` and `key`.
    """

    path: str
    digest: str
    records: Sequence[Data]


class _Wrong(Exception):
    """What is wrong with one record; caught in this file."""


class _Number(str):
    """A number of the JSON text as it is written there: no float rounds it."""

    __slots__ = ()


def read_records(path: str, grader: GraderName, faults: list[Fault]) -> Records:
    """Read one file, with `grader` for records that name none; whatever is wrong with it is added to `faults`.

    Raises OSError where it cannot be read.
    """
    records: list[Data] = []
    seen: dict[str, tuple[int, Data]] = {}
    digest = blake3()
    before = len(faults)
    for number, line in _lines(path):
        digest.update(line)
        try:
            data = _record(line, number, grader)
            if data is None:
                continue
            first, other = seen.setdefault(_asked(data), (number, data))
            if (other["reference"], other["grader"]) != (data["reference"], data["grader"]):
                _refuse(f"the same question as in line {first} with another reference; leave one of them out")
            records.append(data)
        except _Wrong as wrong:
            faults.append(Fault(f"{path}:{number}", str(wrong)))
    if not records and len(faults) == before:
        faults.append(Fault(path, "holds no records; give one JSON object a line"))
    return Records(path, digest.hexdigest(), records)


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file and their numbers from 1; of a line that is too long only the beginning."""
    real = Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises where there is no such user)
    with real.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 2):
            number += 1
            yield number, line
            while len(line) == MAX_LINE + 2 and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE + 2)


def _record(line: bytes, number: int, default: GraderName) -> Data | None:
    """The data of an example, or None for a blank line. Raises _Wrong."""
    if len(line) > MAX_LINE:
        _refuse(f"is longer than {MAX_LINE:,} bytes; shorten the record")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"is not UTF-8 (byte {show(hex(line[error.start]))} at {error.start + 1}); save the file as UTF-8")
    if not text.strip():
        return None
    record = _parsed(text)
    _check_keys(record)
    data = _asked_of(record)
    if "key" in record:
        data["key"] = _text(record, "key")
    data["grader"] = _grader(record, default)
    data["reference"] = _references(record, data)
    return data


def _parsed(text: str) -> dict[str, Any]:
    try:
        record = json.loads(
            text, parse_float=_Number, parse_int=_Number, parse_constant=_constant, object_pairs_hook=_object
        )
        json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        _refuse(f"not valid JSON at column {error.colno}: {error.msg}; give one JSON object a line")
    except RecursionError:
        _refuse("nests too deeply")
    except UnicodeEncodeError:
        _refuse("holds half of a surrogate pair (`\\ud800` to `\\udfff`), which is no character")
    if not isinstance(record, dict):
        _refuse(f"expected a JSON object, found {_shown(record)}")
    return record


def _constant(name: str) -> NoReturn:
    _refuse(f"{name} is no number; give a finite one, or text in quotes")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        _refuse(f"{show(next(name for name in names if names.count(name) > 1))} occurs twice in one object")
    return made


def _check_keys(record: Mapping[str, Any]) -> None:
    for key in record:
        if key not in _KEYS:
            _refuse(f"unknown key {show(key)}; {suggestion(key, _KEYS, 'the keys')}")
    if ("prompt" in record) == ("messages" in record):
        found = "both `prompt` and `messages`" if "prompt" in record else "neither `prompt` nor `messages`"
        _refuse(f"{found}; give one of them")
    if "reference" not in record:
        _refuse("no `reference`; give the right answer, or a list of right answers")


def _asked_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt or the messages, and the choices."""
    data: dict[str, Any] = {}
    if "prompt" in record:
        data["prompt"] = _text(record, "prompt")
    else:
        data["messages"] = _messages(record["messages"])
    if "choices" in record:
        data["choices"] = _choices(record["choices"])
    return data


def _messages(value: object) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        _refuse(f"`messages`: expected a list of messages, found {_shown(value)}")
    for i, message in enumerate(value):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            _refuse(f"`{where}`: expected an object with `role` and `content` alone, found {_shown(message)}")
        if message["role"] not in _ROLES:
            _refuse(f"`{where}.role`: expected one of `system`, `user`, `assistant`, found {_shown(message['role'])}")
        _text(message, "content", where)
    if value[-1]["role"] != "user":
        _refuse(f"`messages`: the last is from {_shown(value[-1]['role'])}; end with the user's, which is answered")
    return value


def _choices(value: object) -> list[str]:
    if not isinstance(value, list) or not 2 <= len(value) <= choice.MAX_CHOICES:
        found = f"a list of {len(value)}" if isinstance(value, list) else _shown(value)
        _refuse(f"`choices`: expected a list of 2 to {choice.MAX_CHOICES} texts, found {found}")
    texts = [_scalar(each, f"choices[{i}]") for i, each in enumerate(value)]
    plain = [" ".join(text.split()) for text in texts]
    if "" in plain or len(set(plain)) < len(plain):
        _refuse("`choices`: expected texts that differ, none of them empty")
    return texts


def _grader(record: Mapping[str, Any], default: GraderName) -> GraderName:
    found = record.get("grader", "choice" if "choices" in record else default)
    if found not in graders.GRADERS:
        known = suggestion(found, graders.GRADERS, "the graders") if isinstance(found, str) else "give its name"
        _refuse(f"`grader`: unknown grader {_shown(found)}; {known}")
    if found == "choice" and "choices" not in record:
        _refuse("no `choices`, which the grader `choice` needs; list them, or name another `grader`")
    return next(name for name in graders.GRADERS if name == found)


def _references(record: Mapping[str, Any], data: Data) -> list[str]:
    """The references as text, each such that the grader could find it right."""
    value = record["reference"]
    several = isinstance(value, list)
    if several and (not value or data["grader"] == "choice"):
        what = "an empty list" if not value else "a list"
        _refuse(f"`reference`: expected {'one choice' if value else 'a text or a number'}, found {what}")
    texts = [_scalar(each, "reference") for each in (value if several else [value])]
    for text in texts:
        fault = graders.fault(data["grader"], text, data.get("choices", ()))
        if fault is not None:
            _refuse(f"`reference` {show(text)} {fault} (grader `{data['grader']}`)")
    return texts


def _text(record: Mapping[str, Any], key: str, where: str = "") -> str:
    value = record[key]
    if type(value) is not str or not value.strip():
        found = "an empty text" if type(value) is str else _shown(value)
        _refuse(f"`{where}{'.' if where else ''}{key}`: expected a text, found {found}")
    return value


def _scalar(value: object, where: str) -> str:
    """A text, or a number as it was written."""
    if not isinstance(value, str):
        _refuse(f"`{where}`: expected a text or a number, found {_shown(value)}")
    return str(value)


def _asked(data: Data) -> str:
    """All that makes up the question."""
    return json.dumps([data.get("prompt"), data.get("messages"), data.get("choices")])


def _shown(value: object) -> str:
    return f"the number {show(str(value))}" if isinstance(value, _Number) else show(value)


def _refuse(message: str) -> NoReturn:
    raise _Wrong(message)
