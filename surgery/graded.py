"""A number that differs from tensor to tensor: interpolated over the layers, or by rules for groups and names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

from surgery.select import Select, resolve
from surgery.wording import show

if TYPE_CHECKING:
    from surgery.anatomy import Anatomy

VALUE = "value"
EXPECTED = (
    "a number, a list of numbers that is interpolated over the layers, or rules such as "
    "`[{tensors: mlp, value: 0.5}, {value: 1}]`, of which a tensor gets the first that selects it"
)


class Rule(Select):
    """The value of the tensors that it selects: one number, or several that are interpolated over their layers."""

    value: tuple[float, ...]

    def at(self, depth: float) -> float:
        """The value at a depth between 0, the first layer, and 1, the last."""
        scaled = depth * (len(self.value) - 1)
        below = min(int(scaled), len(self.value) - 1)
        above = min(below + 1, len(self.value) - 1)
        part = scaled - below
        return (1 - part) * self.value[below] + part * self.value[above]


class Graded(BaseModel):
    """A number for every tensor, by the first of the rules that selects it.

    The depth of a tensor in layer i of n is i / (n - 1), or 1 in a stack of one layer; outside of every stack it is 0,
    as mergekit has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...]

    def table(self, anatomy: Anatomy, names: Iterable[str]) -> dict[str, float]:
        """The number of each of the tensors that a rule selects. Raises ValueError for a rule that selects nothing."""
        found: dict[str, float] = {}
        everything = list(names)
        for rule in self.rules:
            for name in resolve(rule, anatomy, everything):
                found.setdefault(name, rule.at(_depth(anatomy, name)))
        return found

    @property
    def values(self) -> Iterator[float]:
        """All numbers that are written down."""
        return (value for rule in self.rules for value in rule.value)

    def plain(self) -> list[Any]:
        """As a recipe writes it."""
        if self.rules[0].model_fields_set == {VALUE} and len(self.rules) == 1:
            return list(self.rules[0].value)
        return [rule.model_dump(mode="json", exclude_unset=True) for rule in self.rules]


def _depth(anatomy: Anatomy, name: str) -> float:
    place = anatomy.layer_of(name)
    if place is None:
        return 0.0
    last = anatomy.stacks[place[0]].layers - 1
    return place[1] / last if last else 1.0


def read_number(value: object) -> float | Graded:
    """A number, or what differs from tensor to tensor, from plain data. Raises ValueError."""
    if isinstance(value, Graded):
        return value
    if is_number(value):
        return _finite(value)
    if isinstance(value, Mapping):
        return Graded(rules=(_rule(value),))
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, Mapping) for item in value):
            return Graded(rules=tuple(_rule(item) for item in value))
        if all(is_number(item) for item in value):
            return Graded(rules=(Rule(value=tuple(_finite(item) for item in value)),))
    raise ValueError(f"found {show(value)}; expected {EXPECTED}")


def is_number(value: object) -> bool:
    """Whether it is one number; `true` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rule(data: Mapping[str, Any]) -> Rule:
    if VALUE not in data:
        raise ValueError(f"`{VALUE}` is missing in a rule; expected {EXPECTED}")
    given = data[VALUE]
    values = given if isinstance(given, list | tuple) else [given]
    if not values or not all(is_number(item) for item in values):
        raise ValueError(f"found {show(given)} for `{VALUE}`; expected a number, or a list of numbers")
    unknown = [key for key in data if key != VALUE and key not in Select.model_fields]
    if unknown:
        known = ", ".join([VALUE, *Select.model_fields])
        raise ValueError(f"unknown key {show(unknown[0])} in a rule; expected {known}")
    texts = {key: [data[key]] for key in ("tensors", "exclude") if isinstance(data.get(key), str)}
    return Rule.model_validate({**data, **texts, VALUE: [_finite(item) for item in values]})


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"found {show(value)}; expected a finite number")
    return float(value)


def within(low: float = -math.inf, high: float = math.inf, *, strictly: bool = False) -> AfterValidator:
    """Checks that every number written down lies between two bounds, or strictly between."""

    def check(value: float | Graded) -> float | Graded:
        for number in value.values if isinstance(value, Graded) else (value,):
            if not low <= number <= high or (strictly and number in (low, high)):
                raise ValueError(f"found {show(number)}; expected {_bounds(low, high, strictly=strictly)}")
        return value

    return AfterValidator(check)


def _bounds(low: float, high: float, *, strictly: bool) -> str:
    if high == math.inf:
        return f"more than {low:g}" if strictly else f"{low:g} or more"
    if low == -math.inf:
        return f"less than {high:g}" if strictly else f"{high:g} or less"
    return f"a number between {low:g} and {high:g}" + (", and neither of them" if strictly else "")


Numbers = Mapping[Graded, float]

_NUMBER = {"type": "number"}
_VALUE = {"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER, "minItems": 1}]}
NUMBER_SCHEMA: dict[str, Any] = {
    "anyOf": [
        *_VALUE["anyOf"],
        {"type": "array", "minItems": 1, "items": {"type": "object", "required": [VALUE]}},
        {"type": "object", "required": [VALUE]},
    ]
}

if TYPE_CHECKING:
    Number = float  # what an operation holds once it is resolved for a tensor
else:
    Number = Annotated[
        float | Graded,
        BeforeValidator(read_number),
        PlainSerializer(lambda value: value.plain() if isinstance(value, Graded) else value),
        WithJsonSchema(NUMBER_SCHEMA),
    ]
