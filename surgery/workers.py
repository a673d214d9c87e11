"""How many workers a machine wants."""

from __future__ import annotations

import os


def default_workers() -> int:
    """One for each processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chosen_workers(asked: int | None) -> int:
    """How many are taken where so many are asked for; None: the default. Raises ValueError."""
    if asked is not None and asked < 1:
        raise ValueError(f"found `workers={asked}`; expected at least 1, or None for one each processor")
    return asked or default_workers()
