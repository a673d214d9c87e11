"""What came out of the demo, in sentences: each says what the numbers say, whatever that is."""

from __future__ import annotations

from collections.abc import Iterator

from evalkit.figures import ALPHA
from evalkit.stats import Difference
from evalkit.sweeps.result import Row, SweepResult
from evalkit.sweeps.words import difference

# One setting of each recipe, named beforehand: the best of several would be flattered by the choice.
EDITS = {
    "restore-top-20pct head=20%": "The published restore of the leading 20 % of the directions",
    "restore-top-20pct-rotate head=20%": "The same with the other directions turned along (`rotate`)",
    "restore-layer-band layers=first 25%": "All directions of the first quarter of the layers",
    "reset-first-quarter": "The first quarter of the layers reset",
    "wise-ft alpha=0.5": "The plain average with the base",
}


def findings(result: SweepResult) -> list[str]:
    """What fine-tuning did, what RL did, what the edits gave back, what the controls did."""
    said = [*_training(result), *_edits(result), *_controls(result)]
    return [
        *said,
        "Differences are points of accuracy with 95 % intervals of their own: one in twenty misses by chance.",
    ]


def _training(result: SweepResult) -> Iterator[str]:
    base, inter, rl = (result.row(name) for name in ("base", "inter-sft", "rl"))
    start = result.row(result.start)
    yield (
        f"Fine-tuning took the base from {_point(base, 'id')} to {_point(start, 'id')} in distribution and from "
        f"{_point(base, 'ood')} to {_point(start, 'ood')} out of distribution, {_changed(_back(base, 'ood'))}; its "
        f"best checkpoint out of distribution, Inter-SFT, has {_point(inter, 'ood')} there."
    )
    yield (
        f"RL after it: in distribution {_difference(rl, 'id')}, out of distribution {_difference(rl, 'ood')}"
        f"{_share(rl, result)}."
    )


def _edits(result: SweepResult) -> Iterator[str]:
    for name, what in EDITS.items():
        try:
            row = result.row(name)
        except KeyError:
            continue
        yield (
            f"{what}: in distribution {_difference(row, 'id')}, out of distribution {_difference(row, 'ood')}"
            f"{_share(row, result)}."
        )


def _controls(result: SweepResult) -> Iterator[str]:
    values = next((row for row in result.rows if row.recipe == "values-only"), None)
    if values is not None:
        yield f"The control, singular values alone put back: out of distribution {_difference(values, 'ood')}."
    forced = next((row for row in result.rows if row.recipe == "rl-with-sft-directions"), None)
    kept = next((row for row in result.rows if row.recipe == "sft-with-rl-directions"), None)
    if forced is not None and kept is not None:
        yield (
            f"Out of distribution, RL's values on SFT's directions differ from SFT by {_difference(forced, 'ood')}, "
            f"SFT's values on RL's directions by {_difference(kept, 'ood')}: {_side(forced, kept, result)}."
        )


def _side(values: Row, directions: Row, result: SweepResult) -> str:
    """Where RL's effect lies, if there is one: nearer to which of the two RL's own score is."""
    rl = result.row("rl")
    if rl.to_start["all"]["ood"].p >= ALPHA:
        return "where RL's effect lies cannot be told, since there is none to be seen here"
    score = rl.scores["all"]["ood"].value
    by_values, by_directions = (abs(row.scores["all"]["ood"].value - score) for row in (values, directions))
    if abs(by_values - by_directions) < abs(rl.to_start["all"]["ood"].value) / 2:
        return "whether RL's effect lies in the values or in the directions, this does not tell"
    return f"RL's effect lies in the {'directions' if by_directions < by_values else 'values'}"


def _point(row: Row, split: str) -> str:
    return f"{100 * row.scores['all'][split].value:.1f} %"


def _back(row: Row, split: str) -> Difference:
    """From this row to the start: the other way round."""
    found = row.to_start["all"][split]
    return Difference(-found.value, -found.high, -found.low, found.n, found.p, found.adjusted)


def _difference(row: Row, split: str) -> str:
    return _changed(row.to_start["all"][split])


def _changed(found: Difference) -> str:
    """Each of these comparisons was named beforehand: its own p-value, not the one corrected for all rows."""
    return f"{difference(found, 'accuracy')}{'' if found.p < ALPHA else ' (chance may explain it)'}"


def _share(row: Row, result: SweepResult) -> str:
    """How much of what fine-tuning lost is back, (edit - SFT) / (base - SFT), where something was lost for sure."""
    base = result.row("base")
    lost, gained = base.to_start["all"]["ood"], row.to_start["all"]["ood"]
    if lost.value <= 0 or lost.p >= ALPHA or gained.value < 0:
        return ""
    return f", {100 * gained.value / lost.value:.0f} % of what was lost"
