"""One half of the examples to choose by, the other to report on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from evalkit.summary import Scored

Half = Literal["all", "selection", "report"]
HALVES: tuple[Half, ...] = ("all", "selection", "report")


def half_of(key: str) -> Half:
    """The half that all examples of a key belong to, in every sweep: a hash of the key."""
    return "report" if hashlib.blake2b(f"half/{key}".encode(), digest_size=1).digest()[0] % 2 else "selection"


def restricted(scored: Scored, half: Half) -> Scored:
    """What is known of a model on the examples of a half."""
    if half == "all":
        return scored
    return replace(
        scored,
        samples=tuple(sample for sample in scored.samples if half_of(sample.key) == half),
        losses=tuple(loss for loss in scored.losses if half_of(loss.key) == half),
    )


def empty_halves(keys: Sequence[str]) -> list[Half]:
    """The halves that none of the keys belongs to."""
    found = {half_of(key) for key in keys}
    return [half for half in HALVES if half != "all" and half not in found]
