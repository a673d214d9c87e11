"""What a sweep came to, in sentences; whatever came out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from evalkit.figures import ALPHA, LEAST_P, change, number, number_in
from evalkit.stats import Difference, Estimate
from evalkit.summary import compare
from evalkit.sweeps.choice import Aim, Entry
from evalkit.sweeps.halves import restricted
from evalkit.sweeps.result import Row
from surgery.wording import numbered

FAILED = 3  # variants of which the words say why they could not be made
SHARED = (
    "Made with the decompositions that all variants of the sweep share; `surgery apply` alone may differ in the last "
    "bits."
)
PERCENT = ("accuracy",)  # measures that are shown in per cent
NAMES = {
    "accuracy": "accuracy",
    "reward": "mean reward",
    "loss_per_token": "loss a token",
    "loss_per_sequence": "loss a sequence",
}


def figure(estimate: Estimate, measure: str) -> str:
    """`33.6 [30.1, 37.2]`: in per cent, or as it is."""
    scale, digits = scale_of(measure)
    return number_in(Estimate(scale * estimate.value, scale * estimate.low, scale * estimate.high, estimate.n), digits)


def difference(found: Difference, measure: str) -> str:
    """`+3.1 [-0.2, +6.4]`."""
    return change(found, *scale_of(measure))


def scale_of(measure: str) -> tuple[int, int]:
    """What a measure is multiplied by to be shown, and its digits."""
    return (100, 1) if measure in PERCENT else (1, 3)


def words(rows: Sequence[Row], entries: Sequence[Entry], aim: Aim) -> tuple[str, ...]:
    """The choice, what it is worth on the other half, and what plain averaging is worth there."""
    best = next(row for row in rows if row.best)
    start = next(row for row in rows if row.name == aim.start)
    refused = (*_refused(rows, aim), *_failed(rows))
    if best is start:
        return (_none(rows, start, aim), *refused)
    chosen = (
        f"Chosen on the selection half for its {_goal(aim)} there ({_aimed(best, aim)}; {start.name} has "
        f"{_aimed(start, aim)}): {best.name}."
    )
    told = "; ".join(
        f"{split} {figure(best.scores['report'][split], aim.measure)}, {_told(one, aim)}"
        for split, one in best.to_start["report"].items()
    )
    report = f"On the report half, which the choice has not seen, and against {start.name}: {told}."
    return (chosen, report, _averaging(best, rows, entries, aim), *refused)


def _none(rows: Sequence[Row], start: Row, aim: Aim) -> str:
    """That nothing was chosen; where something better was refused for what it loses, what that is."""
    if any(row.error is not None for row in rows) and not _variants(rows):
        return f"None of the variants could be made: nothing was chosen beside {start.name}."
    better = [row for row in _variants(rows) if not row.allowed and row.objective > start.objective]
    which = "Of the variants that lose no more than is tolerated, none" if better else "No variant"
    said = (
        f"{which} is better than {start.name} in {_goal(aim)} on the selection half: nothing was chosen, and the best "
        f"that can be handed on is {start.name} itself."
    )
    if better:
        other = _best(better)
        said += (
            f" The best of those that lose more is {other.name} ({_aimed(other, aim)}; {start.name} has "
            f"{_aimed(start, aim)})."
        )
    return said


def _failed(rows: Sequence[Row]) -> Iterator[str]:
    failed = [row for row in rows if row.error is not None]
    for row in failed[:FAILED]:
        yield f"{row.name} could not be made: {row.error}."
    if len(failed) > FAILED:
        yield f"{len(failed) - FAILED} more could not be made; the table of the report says why."


def _variants(rows: Sequence[Row]) -> list[Row]:
    """Those that were made."""
    return [row for row in rows if row.kind != "model" and row.error is None]


def _refused(rows: Sequence[Row], aim: Aim) -> Iterator[str]:
    variants = _variants(rows)
    refused = [row for row in variants if not row.allowed]
    if refused:
        lost = " or ".join(f"{_amount(by, aim)} of {split}" for split, by in aim.objective.tolerate.items())
        yield (
            f"{len(refused)} of {numbered(len(variants), 'variant')} "
            f"{'lose' if len(refused) > 1 else 'loses'} more on the selection half than the tolerated {lost}."
        )


def _averaging(best: Row, rows: Sequence[Row], entries: Sequence[Entry], aim: Aim) -> str:
    """The winner against the best average, or the best other edit; both chosen on the selection half."""
    allowed = [row for row in rows if row.allowed and not math.isnan(row.objective)]
    averages = [row for row in allowed if row.kind == "baseline"]
    edits = [row for row in allowed if row.kind == "variant"]
    if best.kind == "baseline":
        if not edits:
            return "It is a plain average of the models."
        said, other = "It is a plain average of the models; the best other edit is", _best(edits)
    elif not averages:
        return "No plain average was tried, or none was allowed: whether one does as well is not known."
    else:
        said, other = "The best plain average is", _best(averages)
    told = ", ".join(f"{split} {_told(one, aim)}" for split, one in _paired(best, other, entries, aim).items())
    return f"{said} {other.name}; against it the chosen one has on the report half: {told}."


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row.objective)


def _paired(best: Row, other: Row, entries: Sequence[Entry], aim: Aim) -> Mapping[str, Difference]:
    """The winner less another, on the report half."""
    known = {entry.name: restricted(entry.scored, "report") for entry in entries}
    compared = {split: compare(known[other.name], known[best.name], split) for split in aim.splits}
    return {split: comparison.differences[aim.measure] for split, comparison in compared.items()}


def _told(found: Difference, aim: Aim) -> str:
    p = f"p = {found.p:.2g}" if found.p >= LEAST_P else f"p < {LEAST_P}"
    return f"{difference(found, aim.measure)} ({p}{', no difference to rely on' if found.p >= ALPHA else ''})"


def _goal(aim: Aim) -> str:
    weights = aim.weights
    name = NAMES[aim.measure]
    if len(weights) == 1:
        return f"{next(iter(weights))} {name}"
    if len(set(weights.values())) == 1:
        return f"{name} averaged over {' and '.join(weights)}"
    return f"weighted {name} (" + ", ".join(f"{split} {weight:.2g}" for split, weight in weights.items()) + ")"


def _aimed(row: Row, aim: Aim) -> str:
    scale, digits = scale_of(aim.measure)
    return number(scale * aim.sign * row.objective, digits) + (" %" if aim.measure in PERCENT else "")


def _amount(value: float, aim: Aim) -> str:
    return f"{100 * value:g} points" if aim.measure in PERCENT else f"{value:g}"
