"""Reads the lines of JSON files that users write, one record a line, and says what is wrong with them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from surgery.wording import show, suggestion

MAX_LINE = 1_000_000  # bytes; a longer prompt fits no model's context

_ROLES = ("system", "user", "assistant")


class Wrong(Exception):
    """What is wrong with one record; whoever reads it adds file and line, and goes on with the next."""


class Number(str):
    """A number of the JSON text as it is written there: no float rounds it."""

    __slots__ = ()


def refuse(message: str) -> NoReturn:
    """Raise Wrong."""
    raise Wrong(message)


def lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file and their numbers from 1; of a line that is too long only the beginning. Raises OSError."""
    real = Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises where there is no such user)
    with real.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 2):
            number += 1
            yield number, line
            while len(line) == MAX_LINE + 2 and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE + 2)


def parse(line: bytes, number: int) -> dict[str, Any] | None:
    """The object of a line, its numbers as `Number`, or None for a blank line. Raises Wrong."""
    if len(line) > MAX_LINE:
        refuse(f"is longer than {MAX_LINE:,} bytes; shorten the record")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        refuse(f"is not UTF-8 (byte {show(hex(line[error.start]))} at {error.start + 1}); save the file as UTF-8")
    return _parsed(text) if text.strip() else None


def _parsed(text: str) -> dict[str, Any]:
    try:
        record = json.loads(
            text, parse_float=Number, parse_int=Number, parse_constant=_constant, object_pairs_hook=_object
        )
        json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        refuse(f"not valid JSON at column {error.colno}: {error.msg}; give one JSON object a line")
    except RecursionError:
        refuse("nests too deeply")
    except UnicodeEncodeError:
        refuse("holds half of a surrogate pair (`\\ud800` to `\\udfff`), which is no character")
    if not isinstance(record, dict):
        refuse(f"expected a JSON object, found {shown(record)}")
    return record


def _constant(name: str) -> NoReturn:
    refuse(f"{name} is no number; give a finite one, or text in quotes")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        refuse(f"{show(next(name for name in names if names.count(name) > 1))} occurs twice in one object")
    return made


def check_keys(record: Mapping[str, Any], known: Sequence[str], silent: Sequence[str] = ()) -> None:
    """Raise Wrong for keys that are neither known nor `silent`, which are taken but not suggested."""
    for key in record:
        if key not in known and key not in silent:
            refuse(f"unknown key {show(key)}; {suggestion(key, known, 'the keys')}")


def text_of(record: Mapping[str, Any], key: str, where: str = "") -> str:
    """The text under a key, which is not empty. Raises Wrong."""
    value = record[key]
    if type(value) is not str or not value.strip():
        found = "an empty text" if type(value) is str else shown(value)
        refuse(f"`{where}{'.' if where else ''}{key}`: expected a text, found {found}")
    return value


def messages_of(record: Mapping[str, Any], key: str) -> list[dict[str, str]]:
    """The messages under a key: at least one, each with role and text. Raises Wrong."""
    value = record[key]
    if not isinstance(value, list) or not value:
        refuse(f"`{key}`: expected a list of messages, found {shown(value)}")
    for i, message in enumerate(value):
        where = f"{key}[{i}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            refuse(f"`{where}`: expected an object with `role` and `content` alone, found {shown(message)}")
        if message["role"] not in _ROLES:
            refuse(f"`{where}.role`: expected one of `system`, `user`, `assistant`, found {shown(message['role'])}")
        text_of(message, "content", where)
    return value


def shown(value: object) -> str:
    """A wrong value as a message shows it."""
    return f"the number {show(str(value))}" if isinstance(value, Number) else show(value)
