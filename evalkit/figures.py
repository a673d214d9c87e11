"""Figures, settings and foreign text as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evalkit.stats import CONFIDENCE, Difference, Estimate

ALPHA = 1 - CONFIDENCE
LEAST_P = 0.0001  # smaller p-values are shown as smaller than this
LONG = 40  # characters of a setting beyond which it is only said that it was given
_NOT_SHOWN = {"kind", "task", "task_version", "versions"}


def number(value: float, digits: int) -> str:
    """A plain number, zero without a sign; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:z,.{digits}f}"


def share(estimate: Estimate) -> str:
    """A share in per cent: `17.5`."""
    return number(100 * estimate.value, 1)


def share_in(estimate: Estimate) -> str:
    """A share in per cent with its interval: `17.5 [13.2, 22.9]`."""
    return f"{share(estimate)} [{100 * estimate.low:4.1f}, {100 * estimate.high:4.1f}]"


def number_in(estimate: Estimate | None, digits: int) -> str:
    """A number with its interval where there is one: `0.428 [0.418, 0.438]`; a dash for nothing."""
    if estimate is None:
        return "-"
    known = math.isfinite(estimate.low)
    interval = f" [{estimate.low:z,.{digits}f}, {estimate.high:z,.{digits}f}]" if known else ""
    return number(estimate.value, digits) + interval


def change(difference: Difference, scale: float, digits: int) -> str:
    """A difference with signs: `+18.4 [+9.2, +27.2]`; a dash for nan."""
    if math.isnan(difference.value):
        return "-"
    low, high = scale * difference.low, scale * difference.high
    interval = f" [{low:+z,.{digits}f}, {high:+z,.{digits}f}]" if math.isfinite(low) else ""
    return f"{scale * difference.value:+z,.{digits}f}" + interval


def counts(difference: Difference) -> bool:
    """Whether a difference is significant, after the correction for several where there is one."""
    return (difference.p if difference.adjusted is None else difference.adjusted) < ALPHA


def p_value(difference: Difference) -> str:
    """A p-value, with a star where the difference counts: `0.023 *`."""
    shown = f"{difference.p:.2g}" if difference.p >= LEAST_P else f"<{LEAST_P}"
    return f"{shown} {'*' if counts(difference) else ' '}"


def settings_line(settings: Mapping[str, Any]) -> str:
    """Settings in a line, those within others too; long ones are only said to be given, empty ones left out."""
    shown = []
    for name, value in settings.items():
        if name in _NOT_SHOWN or value is None or value in ("", (), [], {}):
            continue
        if isinstance(value, Mapping):
            shown.append(settings_line(value))
        elif isinstance(value, bool):
            shown.append(f"{name} {'on' if value else 'off'}")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            shown.append(f"{name} {one_line(text)}" if len(text) <= LONG and "\n" not in text else f"{name} given")
    return ", ".join(filter(None, shown))


def one_line(text: str) -> str:
    """Foreign text on one line, without what would steer a terminal."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in joined)


def tail_of(name: str, room: int) -> str:
    """A name of at most so many characters: its end, which tells paths apart."""
    return name if len(name) <= room else f"…{name[1 - room :]}"
