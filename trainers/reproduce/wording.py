"""Numbers over seeds as the report writes them."""

from __future__ import annotations

import math

from evalkit.figures import number
from trainers.reproduce.across import Across

NOTHING = "not there yet"
NO_LOSS = "nothing was lost"
UNKNOWN = "–"  # an interval that the data say nothing about


def percent(found: Across) -> str:
    """`17.5 % [13.2, 22.9]`."""
    return _with_interval(found, 100, 1, " %", signed=False)


def points(found: Across) -> str:
    """`-3.1 points [-6.0, -0.2]`, of a difference of accuracies."""
    return _with_interval(found, 100, 1, " points", signed=True)


def size(found: Across) -> str:
    """`3.1 points [0.2, 6.0]`, of a loss."""
    return _with_interval(found, 100, 1, " points", signed=False)


def shares(found: Across) -> str:
    """`85 % [60, 110]`."""
    return _with_interval(found, 100, 0, " %", signed=False)


def degrees(found: Across) -> str:
    """`27.3°`."""
    return _with_interval(found, 1, 1, "°", signed=False)


def steps(found: Across) -> str:
    """The mean, and the steps of all seeds."""
    return " and ".join(f"{step:,.0f}" for step in dict.fromkeys(found.single))


def small(found: Across) -> str:
    """`0.0041`."""
    return _with_interval(found, 1, 4, "", signed=False)


def bare(found: Across | None, signed: bool = False) -> str:
    """In a table of percentages: `17.5 [13.2, 22.9]`."""
    return UNKNOWN if found is None else _with_interval(found, 100, 1, "", signed)


def _with_interval(found: Across, scale: float, digits: int, unit: str, signed: bool) -> str:
    values = [scale * value for value in (found.value, found.low, found.high)]
    shown = [f"{value:+z,.{digits}f}" if signed else number(value, digits) for value in values]
    known = math.isfinite(found.low) and math.isfinite(found.high)
    return f"{shown[0]}{unit} [{shown[1]}, {shown[2]}]" if known else f"{shown[0]}{unit}"


def counted_stages(number: int) -> str:
    """`1 stage`, `2 stages`."""
    return f"{number} stage{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
