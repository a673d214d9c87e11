"""The text of a converted recipe: YAML in the order and with the breaks of those that people write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgery.source import Path
from surgery.yaml_source import resolve

WIDTH = 100  # of a line that holds a list or a map

_COMMENT = "  # "
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./@-]*")


def recipe_text(data: Mapping[str, Any], above: Sequence[str], beside: Mapping[Path, str]) -> str:
    """The data as YAML that `surgery.yaml_source` reads back.

    `above` are comments at the top, `beside` those behind the keys or the items of lists at these paths.
    """
    lines = [f"# {' '.join(comment.split())}" for comment in above]
    for key, value in data.items():
        lines += _entry(key, value, (key,), "", beside)
    return "\n".join(lines) + "\n"


def _entry(key: str, value: object, path: Path, indent: str, beside: Mapping[Path, str]) -> Iterator[str]:
    comment = f"{_COMMENT}{' '.join(beside[path].split())}" if path in beside else ""
    line = f"{indent}{_flow(key)}: {_flow(value)}"
    if isinstance(value, dict) and value and (not indent or len(line) > WIDTH):
        yield f"{indent}{_flow(key)}:{comment}"
        for name, item in value.items():
            yield from _entry(name, item, (*path, name), f"{indent}  ", beside)
    elif isinstance(value, list) and value and _broken(value, path, line, beside):
        yield f"{indent}{_flow(key)}:{comment}"
        lines = [line for i, item in enumerate(value) for line in _item(item, (*path, i), f"{indent}  ", beside)]
        yield from _aligned(lines)
    else:
        yield line + comment


def _broken(value: Sequence[object], path: Path, line: str, beside: Mapping[Path, str]) -> bool:
    """Whether each item of a list has its own line."""
    maps = any(isinstance(item, dict) for item in value)
    return maps or len(line) > WIDTH or any((*path, i) in beside for i in range(len(value)))


def _item(item: object, path: Path, indent: str, beside: Mapping[Path, str]) -> Iterator[str]:
    if isinstance(item, dict) and path[:-1] == ("steps",):
        lines = [
            line for key, value in item.items() for line in _entry(key, value, (*path, key), f"{indent}  ", beside)
        ]
        yield f"{indent}- {lines[0].lstrip()}"
        yield from lines[1:]
    else:
        comment = f"{_COMMENT}{' '.join(beside[path].split())}" if path in beside else ""
        yield f"{indent}- {_flow(item)}{comment}"


def _aligned(lines: Sequence[str]) -> Iterator[str]:
    """Lines whose comments begin in one column."""
    parts = [line.partition(_COMMENT) for line in lines]
    width = max(len(head) for head, _, _ in parts)
    return (f"{head:{width}}{sign}{comment}" if sign else head for head, sign, comment in parts)


def _flow(value: object) -> str:
    """On one line. Text that YAML might take for something else is quoted as in JSON, which YAML contains."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and _resolved(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _resolved(text: str) -> object:
    try:
        return resolve(text)
    except ValueError:
        return None
