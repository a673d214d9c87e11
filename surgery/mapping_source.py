"""A recipe that was built in Python: checked to be plain data, and written as YAML."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from surgery.errors import Fault, RecipeError
from surgery.source import MAX_DEPTH, MAX_INTEGER, MAX_NODES, MAX_TEXT, Mistake, Path, Source, text_fault
from surgery.wording import show
from surgery.yaml_source import resolve


def read_mapping(mapping: Mapping[str, object], origin: str = "recipe") -> Source:
    """The mapping as plain data, with YAML text made from it.

    Lists and tuples become lists; text, booleans, None, finite numbers and mappings with text keys stay.
    Raises RecipeError for nesting or a size beyond the limits (a list that contains itself, say).
    """
    copier = _Copier(origin)
    data = copier.plain(mapping, ())
    return Source(origin, to_yaml(data), data, {}, tuple(copier.mistakes))


def to_yaml(data: object) -> str:
    """Plain data as YAML in block style that `read_yaml` reads back as the same data."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = MAX_TEXT
    stream = io.StringIO()
    yaml.dump(_quote(data), stream)
    return stream.getvalue()


def _quote(data: object) -> object:
    """The data with quotes asked for around text that would be read as something else."""
    if isinstance(data, dict):
        return {_quote(key): _quote(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_quote(value) for value in data]
    if isinstance(data, str):
        try:
            plain = resolve(data) == data
        except ValueError:
            plain = False
        return data if plain else DoubleQuotedScalarString(data)
    return data


class _Copier:
    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.mistakes: list[Mistake] = []
        self.nodes = 0

    def plain(self, value: object, path: Path) -> object:
        self.nodes += 1
        if len(path) > MAX_DEPTH:
            raise RecipeError([Fault(self.origin, f"nested deeper than {MAX_DEPTH} levels")])
        if self.nodes > MAX_NODES:
            raise RecipeError([Fault(self.origin, f"more than {MAX_NODES:,} values; expected a file written by hand")])
        if isinstance(value, Mapping):
            return self._map(value, path)
        if isinstance(value, list | tuple):
            return [self.plain(item, (*path, i)) for i, item in enumerate(value)]
        fault = _scalar_fault(value)
        if fault is not None:
            self.mistakes.append(Mistake(path, fault))
            return None
        return float(value) if isinstance(value, float) else value  # NumPy's float64 is a float, too

    def _map(self, value: Mapping[object, object], path: Path) -> dict[str, object]:
        items: dict[str, object] = {}
        for key, item in value.items():
            fault = _key_fault(key)
            if fault is not None:
                self.mistakes.append(Mistake(path, fault, void=False))
            else:
                items[str(key)] = self.plain(item, (*path, str(key)))
        return items


def _key_fault(key: object) -> str | None:
    if isinstance(key, str):
        return text_fault(key)
    return f"found a key of the class `{type(key).__qualname__}`; expected text"


def _scalar_fault(value: object) -> str | None:
    if isinstance(value, str):
        return text_fault(value)
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if abs(value) <= MAX_INTEGER else f"found an integer beyond {MAX_INTEGER}"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"found {show(value)}; expected a finite number"
    return f"found a `{type(value).__qualname__}`; expected text, a number, a boolean, a list or a map"
