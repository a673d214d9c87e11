"""What a parameter of a mergekit file is set to: a value, a gradient over the layers, or values by filters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from surgery.graded import is_number
from surgery.wording import show

Scalar = bool | int | float | str

_EXPECTED = (
    "a value, a list of values over the layers, or a list of `{filter: TEXT, value: ...}`, of which a tensor gets the "
    "first whose filter is part of its name"
)
_FLAGS = {  # as YAML 1.1 and pydantic, on which mergekit builds, read them
    **dict.fromkeys(("true", "yes", "on", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "f", "0"), False),
}


@dataclass(frozen=True, slots=True)
class Branch:
    """The values of the tensors whose names contain `filter`, or of all; several values are a gradient."""

    filter: str | None
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """The branches in order: a tensor gets the first that fits it."""

    branches: tuple[Branch, ...]


def read_setting(value: object) -> Setting:
    """A setting from plain data. Raises ValueError."""
    if isinstance(value, Setting):
        return value
    if isinstance(value, Mapping):
        return Setting((_branch(value),))
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return Setting(tuple(_branch(item) for item in value))
    return Setting((Branch(None, _values(value)),))


SettingField = Annotated[Setting, BeforeValidator(read_setting)]


def _branch(data: Mapping[str, Any]) -> Branch:
    unknown = [key for key in data if key not in ("filter", "value")]
    if unknown:
        raise ValueError(f"unknown key {show(unknown[0])}; expected `filter`, `value` (mergekit ignores it)")
    if "value" not in data:
        raise ValueError(f"`value` is missing; expected {_EXPECTED}")
    wanted = data.get("filter")
    if wanted is not None and not isinstance(wanted, str):
        raise ValueError(f"found {show(wanted)} for `filter`; expected a part of tensors' names")
    return Branch(None if wanted in ("*", "") else wanted, _values(data["value"]))


def _values(value: object) -> tuple[Scalar, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, Scalar) for item in values):
        raise ValueError(f"found {show(value)}; expected {_EXPECTED}")
    return tuple(values)


def in_force(levels: Sequence[Mapping[str, Setting]], name: str) -> tuple[Branch, ...]:
    """The branches of the parameter `name` in all levels, the first level counting most; none after one for all."""
    found: list[Branch] = []
    for level in levels:
        for branch in level[name].branches if name in level else ():
            found.append(branch)
            if branch.filter is None:
                return tuple(found)
    return tuple(found)


def number(value: Scalar) -> int | float:
    """A scalar as the number that mergekit takes it for. Raises ValueError."""
    try:
        found = float(value) if isinstance(value, str) else value
    except ValueError:
        found = True
    if not is_number(found) or not math.isfinite(found):
        raise ValueError(f"found {show(value)}; expected a number")
    return found


def flag(value: Scalar) -> bool:
    """A scalar as the truth value that mergekit takes it for. Raises ValueError."""
    found = _FLAGS.get(f"{value:g}" if isinstance(value, float) else str(value).lower())
    if found is None:
        raise ValueError(f"found {show(value)}; expected `true` or `false`")
    return found


def glob(text: str) -> str:
    """The glob that matches the names of which `text` is a part."""
    return f"*{''.join(f'[{c}]' if c in '*?[' else c for c in text)}*"
