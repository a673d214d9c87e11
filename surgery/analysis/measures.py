"""What a comparison measures, in words and units: the one table behind cards, heat map, details and definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgery.analysis.comparison import RESOLUTION

if TYPE_CHECKING:
    import pandas as pd

    from surgery.analysis.comparison import Array

DEGREES, PERCENT = "°", "%"
LEAST_ANGLE = math.degrees(RESOLUTION)  # what is smaller, and not 0, is rounding
BELOW = "0.00006"  # LEAST_ANGLE in words, rounded up


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of `matrices`, or what follows from columns; `definition` is empty where a label says enough."""

    key: str
    label: str
    unit: str = ""
    definition: str = ""
    of: Callable[[pd.DataFrame], pd.Series] | None = None
    mapped: bool = False  # whether the heat map can show it

    def values(self, table: pd.DataFrame) -> Array:
        """In the unit that is shown; not finite where not known."""
        column = table[self.key] if self.of is None else self.of(table)
        scale = {DEGREES: 180 / np.pi, PERCENT: 100.0}.get(self.unit, 1.0)
        return scale * np.asarray(column, np.float64)


def _turned(table: pd.DataFrame) -> pd.Series:
    return 1 - (table["cos_left"] + table["cos_right"]) / 2


def _intruders(table: pd.DataFrame) -> pd.Series:
    return table["intruders_left"] + table["intruders_right"]


def _off_diagonal(table: pd.DataFrame) -> pd.Series:
    return 1 - table["diagonal_share"]


MEASURES = (
    Measure(
        "rotation",
        "Rotation",
        DEGREES,
        "The mean of the principal angles between the subspaces of the leading r singular directions before and after, "
        "of the left and of the right ones. 0° is the same subspace, 90° a perpendicular one. At r = n every angle is "
        "0°, which is why a rank is always named.",
        mapped=True,
    ),
    Measure("angle_left", "Rotation, left", DEGREES, "The same for left singular directions (outputs).", mapped=True),
    Measure("angle_right", "Rotation, right", DEGREES, "The same for right singular directions (inputs).", mapped=True),
    Measure("angle_left_max", "Largest angle, left", DEGREES),
    Measure("angle_right_max", "Largest angle, right", DEGREES),
    Measure(
        "relative_change",
        "Relative change",
        PERCENT,
        "|A − B| / |B| in the Frobenius norm, B before and A after.",
        mapped=True,
    ),
    Measure(
        "values_change",
        "Change of values",
        PERCENT,
        "|S_A − S_B| / |S_B| over the singular values that are known, sorted in both.",
        mapped=True,
    ),
    Measure(
        "turned",
        "1 − |cos| of matching directions",
        "",
        "1 minus the mean |cos| between the i-th singular direction before and the i-th after, i up to r, left and "
        "right together. It also counts directions that only changed places, which rotation does not.",
        _turned,
        True,
    ),
    Measure(
        "intruders",
        "Intruder directions",
        "",
        "Of the 2 r leading directions after, left and right, those that no direction before meets with |cos| of 0.5 "
        "or more. An upper bound where not all directions before are known.",
        _intruders,
        True,
    ),
    Measure(
        "off_diagonal",
        "Rotation's share of the change",
        PERCENT,
        "The change written in the base's singular basis: what is off the diagonal turns directions, what is on it "
        "scales singular values. This is the share of the squared change that is off the diagonal; a change at random "
        "has 1 - 1 / max(rows, cols) there, nearly all. An unchanged matrix has none.",
        _off_diagonal,
        True,
    ),
    Measure(
        "moved_back",
        "Moved back",
        PERCENT,
        "The share of the change from the base to the second model that the third has undone, along that change: 0 % "
        "is none, 100 % all of it; below 0 % it went further. Of several matrices it is that of all as if they were "
        "one: each counts by its squared change.",
        mapped=True,
    ),
    Measure("energy_ratio", "Energy after / before", "", "The ratio of squared Frobenius norms."),
    Measure("values_max_change", "Largest change of a value"),
    Measure("values_head_share", "Change of values in the leading 20 %", PERCENT),
    Measure("values_bulk_share", "… in the middle", PERCENT),
    Measure("values_tail_share", "… in the trailing 20 %", PERCENT),
    Measure("stable_rank_before", "Stable rank before", "", "|W|² / |W|₂², Frobenius over spectral norm."),
    Measure("stable_rank_after", "Stable rank after"),
    Measure("effective_rank_before", "Effective rank before", "", "exp of the entropy of the normalised spectrum."),
    Measure("effective_rank_after", "Effective rank after"),
    Measure("cos_left", "Mean |cos|, left"),
    Measure("cos_right", "Mean |cos|, right"),
    Measure("change_stable_rank", "Stable rank of the change"),
    Measure("change_effective_rank", "Effective rank of the change"),
    Measure("change_rank_90", "Directions with 90 % of the change"),
    Measure("change_head_share", "Change carried by its leading 20 %", PERCENT),
    Measure("rank", "Rank r"),
)


def number(value: float, unit: str = "") -> str:
    """Three digits and the unit: `31.2°`, `0.41 %`, `1,204`; `< 0.00006°` of an angle that is rounding."""
    if unit == DEGREES and 0 < value < LEAST_ANGLE:
        return f"< {BELOW}{unit}"
    text = f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
    if "e" in text:
        text = f"{value:.1e}"
    text = text.replace("-", "−")
    return f"{text}{unit}" if unit in ("", DEGREES) else f"{text}\u00a0{unit}"  # one word: it is not broken over lines


def legible(name: object) -> str:
    """A foreign name with escapes for what does not show, or would turn what follows around."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def pair_name(pair: tuple[str, str]) -> str:
    """`base → tuned`."""
    return f"{legible(pair[0])} → {legible(pair[1])}"
