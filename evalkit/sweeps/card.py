"""The scores of a sweep in the model card of a checkpoint that it leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

from evalkit.sweeps.halves import Half
from evalkit.sweeps.result import Row, SweepResult
from evalkit.sweeps.words import NAMES, PERCENT, SHARED, difference, figure
from surgery.card import CARD_FILE
from surgery.unfinished import writing
from surgery.whole_file import write_whole

MARK = "<!-- surgery sweep -->"  # before the section; a recipe may hold any heading in its comments
_SECTION = re.compile(rf"\n{MARK}\n.*?(?=\n## |\Z)", re.DOTALL)


def add_scores(out: Path, row: Row, result: SweepResult) -> None:
    """Write the scores of a kept row into its card, in place of earlier ones. Raises OutputError.

    The manifest does not list the card, which is for people to edit.
    """
    assert row.kept is not None
    path = out / row.kept / CARD_FILE
    with writing(path):
        card = path.read_text("utf-8", "surrogateescape") if path.exists() else ""
        scored = f"{_SECTION.sub('', card).rstrip()}\n{_section(row, result)}"
        if scored != card:
            write_whole(path, scored.encode("utf-8", "surrogateescape"))


def _section(row: Row, result: SweepResult) -> str:
    """A table: the row beside the models of the sweep, on the half that the choice has not seen."""
    half: Half = "report" if row.best else "all"
    told = "on the half of the examples that the choice of this variant has not seen" if row.best else "on all examples"
    unit = ", %" if result.measure in PERCENT else ""
    tried = sum(other.kind != "model" and other.error is None for other in result.rows)
    count = f"{tried} variants were tried" if tried > 1 else "one variant was tried"
    models = [other for other in result.rows if other.kind == "model"]
    lines = [
        "",
        MARK,
        "## Scores",
        "",
        f"{NAMES[result.measure].capitalize()}{unit} with 95 % intervals, {told}; {count}.",
        "",
        f"| | {' | '.join(result.splits)} |",
        f"|---|{'---|' * len(result.splits)}",
    ]
    for other in (row, *models):
        name = f"this checkpoint (`{row.name}`)" if other is row else f"`{other.name}`"
        lines.append(_line(name, [figure(other.scores[half][split], result.measure) for split in result.splits]))
    changes = [difference(row.to_start[half][split], result.measure) for split in result.splits]
    lines.append(_line(f"this checkpoint less `{result.start}`, on the same examples", changes))
    shared = ["", SHARED] if row.shared else []
    return "\n".join([*lines, "", f"Evaluation: {_settings(result)}.", *shared, ""])


def _line(name: str, cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in (name, *cells))} |"


def _settings(result: SweepResult) -> str:
    known = ("task", "n", "seeds", "part", "attempts", "temperature")
    return ", ".join(f"{name} {json.dumps(result.settings[name])}" for name in known if name in result.settings)
