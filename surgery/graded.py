"""Numbers and amounts that differ from tensor to tensor: interpolated over the layers, or by rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from surgery.quantity import QUANTITY_SCHEMAS, Quantity, QuantityField
from surgery.select import Select, resolve
from surgery.wording import quoted, show

if TYPE_CHECKING:
    from typing import Self

    from surgery.anatomy import Anatomy

VALUE, OPTIONAL = "value", "optional"
LARGEST = 1e12  # of a number: float32 holds the product of three such


class _Rule(Select):
    """What is selected, and its values."""

    value: tuple[Any, ...]
    optional: bool = Field(default=False, description="whether it may select nothing")

    def _between(self, depth: Fraction) -> tuple[Any, Any, Fraction]:
        """The values on either side of a depth, and how far it lies from the first to the second."""
        scaled = depth * (len(self.value) - 1)
        below = int(scaled)
        return self.value[below], self.value[min(below + 1, len(self.value) - 1)], scaled - below


class Rule(_Rule):
    """The value of the tensors that it selects: one number, or several that are interpolated over their layers."""

    value: tuple[float, ...]

    def at(self, depth: Fraction) -> float:
        """The value at a depth between 0, the first layer, and 1, the last."""
        below, above, part = self._between(depth)
        return float((1 - part) * Fraction(below) + part * Fraction(above))


class AmountRule(_Rule):
    """The amount of the tensors that it selects: one, or several percentages, or several counts."""

    value: tuple[QuantityField, ...]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len({amount.count is None for amount in self.value}) > 1:
            raise ValueError(
                f"found counts and percentages together: {quoted(map(str, self.value))}; between them nothing is "
                "defined: expected one or the other, such as `0%` for `0`"
            )
        return self

    def at(self, depth: Fraction) -> Quantity:
        """The amount at a depth: percentages are interpolated exactly, counts rounded half up."""
        below, above, part = self._between(depth)
        if below.count is None:
            return Quantity(percent=(1 - part) * below.percent + part * above.percent)
        return Quantity(count=math.floor((1 - part) * below.count + part * above.count + Fraction(1, 2)))


class Graded(BaseModel):
    """A number, or an amount, for every tensor, by the first of the rules that selects it.

    The depth of a tensor in layer i of n is i / (n - 1), or 1 in a stack of one layer; outside of every stack it is 0,
    as mergekit has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...] | tuple[AmountRule, ...]

    def table(self, anatomy: Anatomy, names: Iterable[str]) -> dict[str, float | Quantity]:
        """The value of each of the tensors that a rule selects. Raises ValueError for one that selects nothing, unless
        it is optional.
        """
        found: dict[str, float | Quantity] = {}
        everything = list(names)
        for rule in self.rules:
            by_layer: dict[tuple[str, int] | None, float | Quantity] = {}
            for name in _selected(rule, anatomy, everything):
                layer = anatomy.layer_of(name)
                if layer not in by_layer:
                    by_layer[layer] = rule.at(_depth(anatomy, layer))
                found.setdefault(name, by_layer[layer])
        return found

    def idle(self, anatomy: Anatomy, names: Iterable[str]) -> list[str]:
        """What the optional rules that select nothing name."""
        everything = list(names)
        idle = [rule for rule in self.rules if rule.optional and not _selected(rule, anatomy, everything)]
        return [", ".join(rule.tensors) for rule in idle]

    @property
    def values(self) -> Iterator[Any]:
        """All numbers, or amounts, that are written down."""
        return (value for rule in self.rules for value in rule.value)

    def plain(self) -> list[Any]:
        """As a recipe writes it."""
        if self.rules[0].model_fields_set == {VALUE} and len(self.rules) == 1:
            return list(self.rules[0].model_dump(mode="json")[VALUE])
        return [rule.model_dump(mode="json", exclude_unset=True) for rule in self.rules]


def _selected(rule: _Rule, anatomy: Anatomy, names: list[str]) -> list[str]:
    """The tensors that a rule selects. Raises ValueError where these are none, unless it is optional."""
    try:
        return resolve(rule, anatomy, names)
    except ValueError:
        if rule.optional:
            return []
        raise


def _depth(anatomy: Anatomy, layer: tuple[str, int] | None) -> Fraction:
    if layer is None:
        return Fraction(0)
    stack, index = layer
    last = anatomy.stacks[stack].layers - 1
    return Fraction(index, last) if last else Fraction(1)


def read_number(value: object) -> float | Graded:
    """A number, or what differs from tensor to tensor, from plain data. Raises ValueError."""
    return _finite(value) if is_number(value) else _graded(value, _NUMBERS)


def read_amount(value: object) -> Quantity | Graded:
    """A count or percentage, or what differs from tensor to tensor, from plain data. Raises ValueError."""
    if isinstance(value, Graded | Mapping | list | tuple):
        return _graded(value, _AMOUNTS)
    return Quantity.parse(value)


def is_number(value: object) -> bool:
    """Whether it is one number; `true` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def written(value: Any) -> Sequence[Any]:
    """All numbers, or amounts, that are written down: of what differs from tensor to tensor, several."""
    return tuple(value.values) if isinstance(value, Graded) else (value,)


def _finite(value: Any) -> float:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"found {show(value)}; expected a finite number")
    if abs(value) > LARGEST:
        raise ValueError(f"found {show(value)}; expected at most {LARGEST:g} in size")
    return float(value)


@dataclass(frozen=True, slots=True)
class _Notation:
    """How single values are recognised and read, what holds them, and their name."""

    is_one: Callable[[object], bool]
    read: Callable[[Any], object]
    rule: type[_Rule]
    one: str
    several: str
    example: str

    @property
    def expected(self) -> str:
        return (
            f"{self.one}, a list of {self.several} that is interpolated over the layers, or rules such as "
            f"`{self.example}`, of which a tensor gets the first that selects it"
        )


_NUMBERS = _Notation(is_number, _finite, Rule, "a number", "numbers", "[{tensors: mlp, value: 0.5}, {value: 1}]")
_AMOUNTS = _Notation(
    lambda value: isinstance(value, int | str | Quantity) and not isinstance(value, bool),
    Quantity.parse,
    AmountRule,
    "a count, a percentage",
    "either",
    "[{tensors: mlp, value: 5%}, {value: 20%}]",
)


def _graded(value: object, notation: _Notation) -> Graded:
    if isinstance(value, Graded):
        return value
    if isinstance(value, Mapping):
        return Graded(rules=(_rule(value, notation),))
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, Mapping) for item in value):
            return Graded(rules=tuple(_rule(item, notation) for item in value))
        if all(notation.is_one(item) for item in value):
            return Graded(rules=(_rule({VALUE: value}, notation),))
    raise ValueError(f"found {show(value)}; expected {notation.expected}")


def _rule(data: Mapping[str, Any], notation: _Notation) -> Any:
    if VALUE not in data:
        raise ValueError(f"`{VALUE}` is missing in a rule; expected {notation.expected}")
    given = data[VALUE]
    values = given if isinstance(given, list | tuple) else [given]
    if not values or not all(notation.is_one(item) for item in values):
        expected = f"{notation.one}, or a list of {notation.several}"
        raise ValueError(f"found {show(given)} for `{VALUE}`; expected {expected}")
    keys = [VALUE, *Select.model_fields, OPTIONAL]
    unknown = [key for key in data if key not in keys]
    if unknown:
        known = ", ".join(keys)
        raise ValueError(f"unknown key {show(unknown[0])} in a rule; expected {known}")
    texts = {key: [data[key]] for key in ("tensors", "exclude") if isinstance(data.get(key), str)}
    return notation.rule.model_validate({**data, **texts, VALUE: [notation.read(item) for item in values]})


def within(low: float = -math.inf, high: float = math.inf, *, strictly: bool = False) -> AfterValidator:
    """Checks that every number written down lies between two bounds, or strictly between."""

    def check(value: float | Graded) -> float | Graded:
        for number in written(value):
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


Numbers = Mapping[Graded, float | Quantity]


def one_or_more(one: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON Schemas of a value and of a list of such, from the alternatives for one."""
    return [*one, {"type": "array", "items": {"anyOf": one} if len(one) > 1 else one[0], "minItems": 1}]


def _graded_schema(one: list[dict[str, Any]], rule: str) -> dict[str, Any]:
    named = {"title": rule, "type": "object"}  # in whose place `surgery.recipe_schema` puts a reference to it
    return {"anyOf": [*one_or_more(one), {"type": "array", "minItems": 1, "items": named}, named]}


NUMBER_SCHEMA = _graded_schema([{"type": "number"}], Rule.__name__)
AMOUNT_SCHEMA = _graded_schema(QUANTITY_SCHEMAS, AmountRule.__name__)


def plain(value: object) -> object:
    """A number, an amount, or what differs from tensor to tensor, as a recipe writes it."""
    if isinstance(value, Graded):
        return value.plain()
    return str(value) if isinstance(value, Quantity) else value


if TYPE_CHECKING:  # what an operation holds once it is resolved for a tensor
    Number = float
    Amount = Quantity
else:
    Number = Annotated[
        float | Graded, BeforeValidator(read_number), PlainSerializer(plain), WithJsonSchema(NUMBER_SCHEMA)
    ]
    Amount = Annotated[
        Quantity | Graded, BeforeValidator(read_amount), PlainSerializer(plain), WithJsonSchema(AMOUNT_SCHEMA)
    ]
