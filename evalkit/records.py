"""Reads records of prompts and references from a file of JSON lines, and finds everything that is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from evalkit import graders
from evalkit.graders import GraderName, choice
from evalkit.json_lines import Wrong, check_keys, lines, messages_of, parse, refuse, shown, text_of
from evalkit.task import Data
from surgery.errors import Fault
from surgery.wording import show, suggestion

_KEYS = ("prompt", "messages", "reference", "choices", "key", "grader")


@dataclass(frozen=True, slots=True)
class Records:
    """What a file holds: the data of its examples in the file's order, and the BLAKE3 digest of its bytes.

    Each has `prompt` or `messages`, `reference` (a list of texts), `grader`, and perhaps `choices` and `key`.
    """

    path: str
    digest: str
    records: Sequence[Data]


def read_records(path: str, grader: GraderName, faults: list[Fault]) -> Records:
    """Read one file, with `grader` for records that name none; whatever is wrong with it is added to `faults`.

    Raises OSError where it cannot be read.
    """
    records: list[Data] = []
    seen: dict[str, tuple[int, Data]] = {}
    digest = blake3()
    before = len(faults)
    for number, line in lines(path):
        digest.update(line)
        try:
            data = _record(line, number, grader)
            if data is None:
                continue
            first, other = seen.setdefault(_asked(data), (number, data))
            if (other["reference"], other["grader"]) != (data["reference"], data["grader"]):
                refuse(f"the same question as in line {first} with another reference; leave one of them out")
            records.append(data)
        except Wrong as wrong:
            faults.append(Fault(f"{path}:{number}", str(wrong)))
    if not records and len(faults) == before:
        faults.append(Fault(path, "holds no records; give one JSON object a line"))
    return Records(path, digest.hexdigest(), records)


def _record(line: bytes, number: int, default: GraderName) -> Data | None:
    """The data of an example, or None for a blank line. Raises Wrong."""
    record = parse(line, number)
    if record is None:
        return None
    _check_keys(record)
    data = _asked_of(record)
    if "key" in record:
        data["key"] = text_of(record, "key")
    data["grader"] = _grader(record, default)
    data["reference"] = _references(record, data)
    return data


def _check_keys(record: Mapping[str, Any]) -> None:
    check_keys(record, _KEYS)
    if ("prompt" in record) == ("messages" in record):
        found = "both `prompt` and `messages`" if "prompt" in record else "neither `prompt` nor `messages`"
        refuse(f"{found}; give one of them")
    if "reference" not in record:
        refuse("no `reference`; give the right answer, or a list of right answers")


def _asked_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt or the messages, and the choices."""
    data: dict[str, Any] = {}
    if "prompt" in record:
        data["prompt"] = text_of(record, "prompt")
    else:
        data["messages"] = messages_of(record, "messages")
        last = data["messages"][-1]["role"]
        if last != "user":
            refuse(f"`messages`: the last is from {shown(last)}; end with the user's, which is answered")
    if "choices" in record:
        data["choices"] = _choices(record["choices"])
    return data


def _choices(value: object) -> list[str]:
    if not isinstance(value, list) or not 2 <= len(value) <= choice.MAX_CHOICES:
        found = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
        refuse(f"`choices`: expected a list of 2 to {choice.MAX_CHOICES} texts, found {found}")
    texts = [_scalar(each, f"choices[{i}]") for i, each in enumerate(value)]
    plain = [" ".join(text.split()) for text in texts]
    if "" in plain or len(set(plain)) < len(plain):
        refuse("`choices`: expected texts that differ, none of them empty")
    return texts


def _grader(record: Mapping[str, Any], default: GraderName) -> GraderName:
    found = record.get("grader", "choice" if "choices" in record else default)
    if found not in graders.GRADERS:
        known = suggestion(found, graders.GRADERS, "the graders") if isinstance(found, str) else "give its name"
        refuse(f"`grader`: unknown grader {shown(found)}; {known}")
    if found == "choice" and "choices" not in record:
        refuse("no `choices`, which the grader `choice` needs; list them, or name another `grader`")
    return next(name for name in graders.GRADERS if name == found)


def _references(record: Mapping[str, Any], data: Data) -> list[str]:
    """The references as text, each such that the grader could find it right."""
    value = record["reference"]
    several = isinstance(value, list)
    if several and (not value or data["grader"] == "choice"):
        what = "an empty list" if not value else "a list"
        refuse(f"`reference`: expected {'one choice' if value else 'a text or a number'}, found {what}")
    texts = [_scalar(each, "reference") for each in (value if several else [value])]
    for text in texts:
        fault = graders.fault(data["grader"], text, data.get("choices", ()))
        if fault is not None:
            refuse(f"`reference` {show(text)} {fault} (grader `{data['grader']}`)")
    return texts


def _scalar(value: object, where: str) -> str:
    """A text, or a number as it was written."""
    if not isinstance(value, str):
        refuse(f"`{where}`: expected a text or a number, found {shown(value)}")
    return str(value)


def _asked(data: Data) -> str:
    """All that makes up the question."""
    return json.dumps([data.get("prompt"), data.get("messages"), data.get("choices")])
