"""What came out of the demo, in sentences: each says what the numbers say, whatever that is."""

from __future__ import annotations

from collections.abc import Iterator

from evalkit.figures import ALPHA
from evalkit.stats import Difference
from evalkit.sweeps.result import Row, SweepResult
from evalkit.sweeps.words import difference


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
    for recipe, what in (
        ("restore-top-20pct", "The published restore of leading directions"),
        ("restore-top-20pct-rotate", "The same with the other directions turned along (`rotate`)"),
        ("restore-layer-band", "All directions of the first quarter of the layers"),
        ("reset-first-quarter", "The first quarter of the layers reset"),
        ("wise-ft", "Plain averaging with the base"),
    ):
        rows = [row for row in result.rows if row.recipe == recipe and "rl" not in row.models.values()]
        if rows:
            best = max(rows, key=lambda row: row.scores["all"]["ood"].value)
            setting = ", ".join(f"{key} {value}" for key, value in best.parameters.items())
            yield (
                f"{what}{f' ({setting}, the better out of distribution)' if len(rows) > 1 else ''}: in distribution "
                f"{_difference(best, 'id')}, out of distribution {_difference(best, 'ood')}{_share(best, result)}."
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
    """How much of what fine-tuning lost is back: (edit - SFT) / (best before - SFT), where something was lost."""
    start = result.row(result.start).scores["all"]["ood"].value
    peak = max(result.row(name).scores["all"]["ood"].value for name in ("base", "inter-sft"))
    if peak - start < 0.02:
        return ""
    return f", {100 * (row.scores['all']['ood'].value - start) / (peak - start):.0f} % of what was lost"
