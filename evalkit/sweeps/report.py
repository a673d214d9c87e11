"""The report of a sweep: one HTML page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalkit.figures import counts, one_line, settings_line
from evalkit.sweeps.result import Row, SweepResult
from evalkit.sweeps.words import NAMES, PERCENT, SHARED, difference, figure
from surgery.page import address, render

TEMPLATE = Path(__file__).with_name("report.html.j2")
CHOSEN, OPTIMAL, REFUSED, FAILED = "chosen", "Pareto-optimal", "loses too much", "could not be made"


def make_report(result: SweepResult, picture: bytes, commands: Sequence[str]) -> bytes:
    """The page, UTF-8: what came out in words, the figure, a table of all rows, how it was made.

    `picture` is PNG or SVG. Raises NotInstalledError without Jinja.
    """
    return render(
        TEMPLATE,
        {
            "result": result,
            "picture": address(picture),
            "measure": heading(result),
            "rows": [_shown(row, result) for row in result.rows],
            "recipes": {row.recipe: row.summary for row in result.rows if row.recipe},
            "settings": asked(result),
            "commands": commands,
            "remark": SHARED if result.winner.shared else "",
        },
    )


def heading(result: SweepResult) -> str:
    """The measure and its unit."""
    return f"{NAMES[result.measure]}{', %' if result.measure in PERCENT else ''}"


def asked(result: SweepResult) -> str:
    """The task and its settings, in a line."""
    return f"{one_line(str(result.settings.get('task', '')))}: {settings_line(result.settings)}"


def scores(row: Row, result: SweepResult) -> list[str]:
    """On all examples, by split; nothing of what could not be made."""
    if row.error is not None:
        return ["" for _ in result.splits]
    return [figure(row.scores["all"][split], result.measure) for split in result.splits]


def changes(row: Row, result: SweepResult) -> list[str]:
    """From `start` on all examples, by split; those that count have a star, and `start` has none."""
    if not row.to_start:
        return ["" for _ in result.splits]
    found = [row.to_start["all"][split] for split in result.splits]
    return [f"{difference(one, result.measure)} {'*' if counts(one) else ' '}" for one in found]


def marks(row: Row) -> list[str]:
    """What a row is."""
    candidate = row.kind != "model"
    failed = row.error is not None
    refused = candidate and not row.allowed and not failed
    said = {CHOSEN: candidate and row.best, OPTIMAL: row.pareto, REFUSED: refused, FAILED: failed}
    return [mark for mark, true in said.items() if true]


def _shown(row: Row, result: SweepResult) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "best": row.best,
        "cells": [cell.rstrip() for cell in (*scores(row, result), *changes(row, result))],
        "marks": ", ".join(marks(row)) + (f": {row.error}" if row.error is not None else ""),
    }
