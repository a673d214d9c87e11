"""The paper's numbers beside ours, and its claims with what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainers.reproduce.across import Across
from trainers.reproduce.pipeline import BASE, INTER, RL, SFT
from trainers.reproduce.results import AVERAGE, OOD, REFERENCE, EditRow, Results
from trainers.reproduce.wording import NO_LOSS, NOTHING, degrees, percent, points, shares, size, small, steps

SOURCE = "arXiv 2509.12235"
PUBLISHED, ROTATE = "restore-top-20pct", "restore-top-20pct-rotate"
BAND, FIRST = "restore-layer-band", "reset-first-quarter"
VALUES = "values-only"
ON_SFT, ON_RL = "rl-with-sft-directions", "sft-with-rl-directions"
HEAD, QUARTER = "20%", "first 25%"

# No change is one of less than 2 points either way: about what the paper's own 234 hands can tell at 17 %, and named
# beforehand, so that too few data do not count as no change.
MARGIN = 0.02

Verdict = Literal["seen", "opposite", "open", "missing"]
_LABELS = {
    "seen": "seen",
    "opposite": "the opposite was seen",
    "open": "not decided",
    "missing": "not measured",
}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number of the paper: what Llama-3.2-11B and Qwen-2.5-7B had, and how ours is found and shown."""

    name: str
    llama: str
    qwen: str
    found: Callable[[Results], Across | None]
    show: Callable[[Across], str]

    def shown(self, results: Results) -> str:
        """Ours, or that it is not there."""
        found = self.found(results)
        if found is None:
            return NO_LOSS if self.show is shares and results.lost is not None else NOTHING
        return self.show(found)


def _change(recipe: str, start: str, **parameters: str) -> Callable[[Results], Across | None]:
    def found(results: Results) -> Across | None:
        row = _paper_edit(results, recipe, start, **parameters)
        return None if row is None else row.changes.get(OOD)

    return found


def _recovered(recipe: str, **parameters: str) -> Callable[[Results], Across | None]:
    def found(results: Results) -> Across | None:
        row = _paper_edit(results, recipe, SFT, **parameters)
        return None if row is None else row.recovered

    return found


def _paper_edit(results: Results, recipe: str, start: str, **parameters: str) -> EditRow | None:
    """The edit with the paper's donor, the best SFT checkpoint; or with the base, where that was not tried."""
    donors = (INTER, BASE) if start == SFT else ("",)
    rows = (results.find(recipe, start, donor, **parameters) for donor in donors)
    return next((row for row in rows if row is not None), None)


def _best_step(results: Results) -> Across | None:
    from evalkit.stats import Estimate
    from trainers.reproduce.across import across

    found = [float(seed.best_step) for seed in results.seeds if seed.best_step is not None]
    return across([Estimate(step, float("-inf"), float("inf"), 1) for step in found])


_BOTH = ("70-80 %", "70-80 %")
_NOT_TRIED = ("not tried", "not tried")
_OF_QKV = "(q, k, v of layer 0)"
QUANTITIES: Sequence[Quantity] = (
    Quantity("OOD accuracy, Inter-SFT", "17.52 %", "19.67 %", lambda r: r.score(INTER, OOD), percent),
    Quantity("OOD accuracy, SFT", "8.97 %", "17.09 %", lambda r: r.score(SFT, OOD), percent),
    Quantity("OOD accuracy, RL", "16.2 % (abstract: 15.38 %)", "19.66-19.8 %", lambda r: r.score(RL, OOD), percent),
    Quantity("step of Inter-SFT", "140 of 1,100", "120 of 800", _best_step, steps),
    Quantity("OOD lost from Inter-SFT to SFT", "8.55 points", "2.58 points", lambda r: r.lost, size),
    Quantity("share of it that RL recovers", "85 %", "99 %", lambda r: r.recovered(RL), shares),
    Quantity(
        f"share that the leading {HEAD} of the directions recover, as published", *_BOTH,
        _recovered(PUBLISHED, head=HEAD), shares,
    ),
    Quantity(
        "the same, factors kept orthonormal", *_NOT_TRIED, _recovered(ROTATE, head=HEAD), shares,
    ),
    Quantity("share that the first 25 % of the layers recover", *_BOTH, _recovered(FIRST, layers=QUARTER), shares),
    Quantity("OOD change when values alone are restored", "none", "none", _change(VALUES, SFT), points),
    Quantity("OOD change of RL on SFT's directions", "16.2 to 10.6 %", "19.8 to 19.0 %", _change(ON_SFT, RL), points),
    Quantity(
        f"share that the plain average recovers (alpha {REFERENCE})", *_NOT_TRIED,
        _recovered(AVERAGE, alpha=REFERENCE), shares,
    ),
    Quantity(
        "largest movement of a singular value (q, k, v)", "0-0.005", "0-0.005", lambda r: r.geometry("values"), small
    ),
    Quantity(f"smallest principal angle {_OF_QKV}", "25-30°", "25-30°", lambda r: r.geometry("least"), degrees),
    Quantity(f"largest principal angle {_OF_QKV}", "90°", "90°", lambda r: r.geometry("most"), degrees),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that the paper says, or that it would have to stand beside, with what came out here.

    `expected` is the sign of the difference that it says, 0 for none; `ours` marks what the paper does not say.
    """

    text: str
    found: Across | None
    expected: int
    ours: bool = False
    more: str = ""

    @property
    def verdict(self) -> Verdict:
        """By the interval: on the expected side of zero, on the other, or on both.

        Where no change is expected: within `MARGIN` of zero, farther away as a whole, or neither.
        """
        if self.found is None:
            return "missing"
        if self.expected == 0:
            low, high = self.found.low, self.found.high
            if low > -MARGIN and high < MARGIN:
                return "seen"
            return "opposite" if low > MARGIN or high < -MARGIN else "open"
        return "open" if not self.found.sign else "seen" if self.found.sign == self.expected else "opposite"

    @property
    def label(self) -> str:
        """The verdict in words."""
        if self.expected == 0 and self.verdict in ("seen", "opposite"):
            return "no change was seen" if self.verdict == "seen" else "a change was seen"
        return _LABELS[self.verdict]

    @property
    def outcome(self) -> str:
        """What came out."""
        return "" if self.found is None else f"{points(self.found)}.{self.more}"

    def json(self) -> dict[str, Any]:
        """As plain data."""
        found = None if self.found is None else self.found.json()
        return {"text": self.text, "verdict": self.verdict, "outcome": self.outcome, "found": found, "ours": self.ours}


def claims(results: Results) -> list[Claim]:
    """All claims, in the order of the figures; differences of accuracy out of distribution."""
    found = [
        Claim("SFT loses OOD accuracy after its best checkpoint.", results.difference(INTER, SFT, OOD), -1),
        Claim(
            "RL after SFT gives OOD accuracy back.",
            results.difference(SFT, RL, OOD),
            1,
            more=_part(results.recovered(RL)),
        ),
    ]
    for control in results.experiment.controls:
        text = f"It is RL that does it: more SFT on the same problems ({control}) gives back less."
        found.append(Claim(text, results.difference(control, RL, OOD), 1, ours=True))
    for donor in results.donors:
        found += _of_donor(results, donor)
    swap = results.find(ON_SFT, RL)
    forced = None if swap is None else swap.changes.get(OOD)
    found.append(Claim("RL's weights forced onto SFT's directions lose OOD accuracy.", forced, -1))
    return found


def _of_donor(results: Results, donor: str) -> Iterator[Claim]:
    """What edits of SFT with the directions, layers or weights of one model do."""
    name = results.title(donor)
    tried = (
        (
            PUBLISHED,
            {"head": HEAD},
            f"The leading {HEAD} of the directions, taken from {name} as published, restore OOD accuracy.",
            False,
        ),
        (
            ROTATE,
            {"head": HEAD},
            f"The leading {HEAD} of the directions, taken from {name} and kept orthonormal, restore it.",
            True,
        ),
        (FIRST, {"layers": QUARTER}, f"The first 25 % of the layers, copied from {name}, restore it.", False),
        (AVERAGE, {"alpha": REFERENCE}, f"The plain average with {name} restores it.", True),
    )
    for recipe, parameters, text, ours in tried:
        row = results.find(recipe, SFT, donor, **parameters)
        if row is not None:
            more = _part(row.recovered) + _cost(row)
            yield Claim(text, row.changes.get(OOD), 1, ours, more)
    row = results.find(VALUES, SFT, donor)
    if row is not None:
        yield Claim(f"Singular values alone, taken from {name}, change nothing.", row.changes.get(OOD), 0)
    row = results.find(ROTATE, SFT, donor, head=HEAD)
    if row is not None and row.beyond_average is not None and row.beyond_average.seeds > 1:
        text = f"Restored directions ({HEAD}, orthonormal) beat the plain average with {name}."
        yield Claim(text, row.beyond_average, 1, ours=True)


def _part(recovered: Across | None) -> str:
    return "" if recovered is None else f" That is {shares(recovered)} of what SFT had lost."


def _cost(row: EditRow) -> str:
    change = row.changes.get("id")
    return "" if change is None else f" In distribution: {points(change)}."
