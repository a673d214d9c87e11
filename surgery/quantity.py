"""Counts and percentages: `64`, `20%`, `all`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from surgery.wording import show

_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,12})?)\s*%", re.ASCII)  # 15 digits: exact as a float in `__str__`
_COUNT = re.compile(r"\d{1,12}", re.ASCII)
MAX_COUNT = 10**12 - 1
QUANTITY_PATTERN = r"^(all|\d{1,12}|\d{1,3}(\.\d{1,12})?\s*%)$"


@dataclass(frozen=True, slots=True)
class Quantity:
    """How many of n things: a count, or a percentage of n. Exactly one of the two is set."""

    count: int | None = None
    percent: Fraction | None = None

    @classmethod
    def parse(cls, value: object) -> Quantity:
        """Read `64`, `"64"`, `"20%"`, `"12.5 %"` or `"all"`. Raises ValueError for anything else."""
        if isinstance(value, Quantity):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
            return cls(count=value)
        text = value.strip() if isinstance(value, str) else ""
        if text == "all":
            return cls(percent=Fraction(100))
        if _COUNT.fullmatch(text):
            return cls(count=int(text))
        match = _PERCENT.fullmatch(text)
        if match and Fraction(match[1]) <= 100:
            return cls(percent=Fraction(match[1]))
        raise ValueError(
            f"found {show(value)}; expected a count such as `64`, a percentage from `0%` to `100%`, or `all`"
        )

    def of(self, n: int) -> int:
        """The number meant, of n things: floor(p n / 100 + 1/2), at least 1 when p > 0; never more than n."""
        if self.count is not None:
            return min(self.count, n)
        assert self.percent is not None
        if self.percent == 0 or n == 0:
            return 0
        return max(1, (self.percent * n / 100 + Fraction(1, 2)).__floor__())

    def __str__(self) -> str:
        if self.count is not None:
            return str(self.count)
        assert self.percent is not None
        return "all" if self.percent == 100 else f"{float(self.percent):.12f}".rstrip("0").rstrip(".") + "%"


QUANTITY_SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "maximum": MAX_COUNT},
    {"type": "string", "pattern": QUANTITY_PATTERN},
]
QuantityField = Annotated[
    Quantity,
    BeforeValidator(Quantity.parse),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"anyOf": QUANTITY_SCHEMAS, "description": "a count (`64`), a percentage (`20%`) or `all`"}),
]
