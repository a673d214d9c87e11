"""The text of a converted recipe: YAML in the order and with the breaks of those that people write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgery.source import Path
from surgery.yaml_source import resolve

WIDTH = 100  # of a line that holds a list or a map

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
    line = f"{indent}{_flow(key)}: {_flow(value)}"
    if isinstance(value, dict) and value and (not indent or len(line) > WIDTH):
        yield _commented(f"{indent}{_flow(key)}:", path, beside)
        for name, item in value.items():
            yield from _entry(name, item, (*path, name), f"{indent}  ", beside)
    elif isinstance(value, list) and value and _broken(value, path, line, beside):
        yield _commented(f"{indent}{_flow(key)}:", path, beside)
        yield from _items(value, path, f"{indent}  ", beside)
    else:
        yield _commented(line, path, beside)


def _broken(value: Sequence[object], path: Path, line: str, beside: Mapping[Path, str]) -> bool:
    """Whether each item of a list has its own line."""
    maps = any(isinstance(item, dict) for item in value)
    return maps or len(line) > WIDTH or any((*path, i) in beside for i in range(len(value)))


def _items(value: Sequence[object], path: Path, indent: str, beside: Mapping[Path, str]) -> Iterator[str]:
    """A list in lines; a step has a line for each of its keys."""
    texts = [_flow(item) for item in value]
    width = max(map(len, texts))
    for i, (item, text) in enumerate(zip(value, texts, strict=True)):
        if isinstance(item, dict) and path == ("steps",):
            inner = f"{indent}  "
            lines = [line for key in item for line in _entry(key, item[key], (*path, i, key), inner, beside)]
            yield f"{indent}- {lines[0].lstrip()}"
            yield from lines[1:]
        else:
            yield _commented(f"{indent}- {text:{width}}".rstrip(), (*path, i), beside, len(indent) + 2 + width)


def _commented(line: str, path: Path, beside: Mapping[Path, str], width: int = 0) -> str:
    return f"{line:{width}}  # {' '.join(beside[path].split())}" if path in beside else line


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
