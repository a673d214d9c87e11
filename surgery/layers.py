"""Which layers of a stack: `all`, `first 25%`, `last 4`, `0-9`, `[0-4, 20-27]`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from surgery.quantity import Quantity
from surgery.wording import show

_END = re.compile(r"(first|last)\s+(\S.*)", re.ASCII)
_RANGE = re.compile(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?", re.ASCII)
MAX_LAYER = 10**6 - 1
_EXPECTED = "`all`, `first 25%`, `last 4`, a range `0-9`, or a list of ranges `[0-4, 20-27]`"


@dataclass(frozen=True, slots=True)
class LayerRange:
    """A set of layer indices that is known once the number of layers is.

    `kind` is `all`, `first` or `last` (with `quantity`), or `ranges` (inclusive pairs, as written).
    """

    kind: Literal["all", "first", "last", "ranges"]
    quantity: Quantity | None = None
    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, value: object) -> LayerRange:
        """Read one of the notations above. Raises ValueError for anything else."""
        if isinstance(value, LayerRange):
            return value
        if isinstance(value, list | tuple) and value:
            return cls("ranges", ranges=tuple(_range(item) for item in value))
        if isinstance(value, str):
            text = value.strip()
            if text == "all":
                return cls("all")
            end = _END.fullmatch(text)
            if end:
                return cls("first" if end[1] == "first" else "last", quantity=Quantity.parse(end[2]))
        return cls("ranges", ranges=(_range(value),))

    def of(self, n: int) -> frozenset[int]:
        """The indices meant, in a stack of n layers. Raises ValueError when a range leaves the stack."""
        if self.kind == "all":
            return frozenset(range(n))
        if self.quantity is not None:
            k = self.quantity.of(n)
            return frozenset(range(k) if self.kind == "first" else range(n - k, n))
        for _, high in self.ranges:
            if high >= n:
                raise ValueError(f"`layers: {self}` names layer {high}; the stack has layers 0-{n - 1}")
        return frozenset(i for low, high in self.ranges for i in range(low, high + 1))

    def in_order(self, n: int) -> Iterator[int]:
        """The indices in the order in which they are written, repeated as often; a range may leave the stack of n."""
        if self.kind == "ranges":
            return (i for low, high in self.ranges for i in range(low, high + 1))
        return iter(sorted(self.of(n)))

    def __str__(self) -> str:
        if self.kind == "ranges":
            parts = [str(low) if low == high else f"{low}-{high}" for low, high in self.ranges]
            return parts[0] if len(parts) == 1 else f"[{', '.join(parts)}]"
        return self.kind if self.quantity is None else f"{self.kind} {self.quantity}"

    def plain(self) -> str | list[str]:
        """The notation as plain data, readable by `parse`."""
        if len(self.ranges) > 1:
            return [str(LayerRange("ranges", ranges=(pair,))) for pair in self.ranges]
        return str(self)


def _range(value: object) -> tuple[int, int]:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_LAYER:
        return value, value
    match = _RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"found {show(value)}; expected {_EXPECTED}")
    low, high = int(match[1]), int(match[2] or match[1])
    if low > high:
        raise ValueError(f"found the range `{value}`, which runs backwards; write `{high}-{low}`")
    return low, high


_RANGE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\s*-\s*\d+)?$"}]}

LayerRangeField = Annotated[
    LayerRange,
    BeforeValidator(LayerRange.parse),
    PlainSerializer(LayerRange.plain),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MAX_LAYER},
                {
                    "type": "string",
                    "pattern": r"^(all|(first|last)\s+(all|\d+|\d+(\.\d+)?\s*%)|\d+(\s*-\s*\d+)?)$",
                },
                {"type": "array", "items": _RANGE_SCHEMA, "minItems": 1},
            ],
            "description": _EXPECTED.replace("`", ""),
        }
    ),
]
