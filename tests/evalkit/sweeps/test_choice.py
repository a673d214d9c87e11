"""The choice: honest, in the order of what is wanted, and the same whatever the report half says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.engines.base import Model
from evalkit.stats import Estimate
from evalkit.summary import Scored, compare, score
from evalkit.sweeps.choice import Aim, Entry, choose, make_rows, pareto, scores_of
from evalkit.sweeps.halves import half_of, restricted
from tests.evalkit.sweeps.made import N, aim, entries, entry, sample, scored

Shares = Mapping[str, float]


def estimates(**values: float) -> dict[str, Estimate]:
    """Scores of which only the values matter."""
    return {split: Estimate(value, value, value, 1) for split, value in values.items()}


def chosen(wanted: Aim, **variants: dict[str, Estimate]) -> str:
    """Which of these is chosen; `sft` is the start, `base` another model."""
    return choose(variants, {"base", "sft"}, wanted)


START = estimates(id=0.6, ood=0.2)


def test_the_mean_of_all_splits_is_the_default() -> None:
    """Without `improve`, splits count alike."""
    assert chosen(aim(), sft=START, a=estimates(id=0.5, ood=0.4), b=estimates(id=0.6, ood=0.25)) == "a"
    assert aim().weights == {"id": 0.5, "ood": 0.5}


def test_weights_and_single_splits() -> None:
    """A split alone, or weights in any unit; a weight of 0 is as if the split were not named."""
    a, b = estimates(id=0.5, ood=0.4), estimates(id=0.62, ood=0.2)
    assert chosen(aim(improve="id"), sft=START, a=a, b=b) == "b"
    assert chosen(aim(improve={"id": 10, "ood": 1}), sft=START, a=a, b=b) == "b"
    assert chosen(aim(improve={"id": 0, "ood": 3}), sft=START, a=a, b=b) == "a"
    assert aim(improve={"id": 0, "ood": 3}).weights == {"ood": 1.0}


def test_of_losses_less_is_better() -> None:
    """The objective, what is tolerated, and the Pareto front all turn round."""
    wanted = aim(measure="loss_per_token", tolerate={"id": 0.1})
    start, good = estimates(id=1.0, ood=2.0), estimates(id=1.05, ood=1.0)
    found = {"sft": start, "good": good, "lossy": estimates(id=1.2, ood=0.1), "bad": estimates(id=1.1, ood=3.0)}
    assert choose(found, {"sft"}, wanted) == "good"
    assert wanted.value(good) == pytest.approx(-1.025)
    assert pareto(found, wanted) == {"sft", "good", "lossy"}


def test_what_may_be_lost() -> None:
    """A variant that loses more of a split than is tolerated is not taken, to the last bit of rounding."""
    found = {"sft": estimates(id=0.6, ood=0.2), "a": estimates(id=0.58, ood=0.5), "b": estimates(id=0.57, ood=0.9)}
    assert 0.58 - 0.6 < -0.02
    assert choose(found, {"sft"}, aim(tolerate={"id": 0.02})) == "a"
    assert choose(found, {"sft"}, aim(tolerate={"id": 0.0})) == "sft"
    assert choose(found, {"sft"}, aim()) == "b"


def test_start_wins_where_none_is_better() -> None:
    """Equal is not better; of equal variants the first is taken; other models are never chosen."""
    best = estimates(id=0.9, ood=0.9)
    assert chosen(aim(), sft=START, a=START, base=best) == "sft"
    assert chosen(aim(), sft=START, a=best, b=best) == "a"
    assert chosen(aim(), sft=START, b=best, a=best) == "b"


def test_a_score_that_is_not_known_is_never_the_best() -> None:
    """Neither chosen nor on the Pareto front, wherever it stands."""
    nan = estimates(id=math.nan, ood=0.9)
    for found in ({"nan": nan, "sft": START, "a": estimates(id=0.7, ood=0.2)}, {"sft": START, "nan": nan}):
        assert choose(found, {"sft"}, aim()) in ("a", "sft")
        assert "nan" not in pareto(found, aim())


@pytest.mark.parametrize("splits", [("id",), ("id", "ood"), ("id", "ood", "hard")])
@given(data=st.data())
def test_pareto_is_what_no_other_beats(splits: tuple[str, ...], data: st.DataObject) -> None:
    """By definition: as good on every split and better on one; points that are equal stand or fall together."""
    values = st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=len(splits), max_size=len(splits))
    points = data.draw(st.lists(values, min_size=1, max_size=8))
    found = {str(i): estimates(**dict(zip(splits, point, strict=True))) for i, point in enumerate(points)}
    optimal = pareto(found, aim(splits))
    for i, point in enumerate(points):
        beaten = any(
            all(a >= b for a, b in zip(other, point, strict=True))
            and any(a > b for a, b in zip(other, point, strict=True))
            for other in points
        )
        assert (str(i) in optimal) is not beaten
    assert optimal


def turned(known: Scored, which: set[int]) -> Scored:
    """With these samples of the report half answered the other way."""
    samples = [
        sample(each.split, each.index, not each.correct) if half_of(each.key) == "report" and i in which else each
        for i, each in enumerate(known.samples)
    ]
    losses = [
        replace(loss, nll=loss.nll + 10) if half_of(loss.key) == "report" and i in which else loss
        for i, loss in enumerate(known.losses)
    ]
    return replace(known, samples=tuple(samples), losses=tuple(losses))


@settings(max_examples=40)
@given(
    shares=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
    which=st.sets(st.integers(0, 2 * N - 1)),
    measure=st.sampled_from(["accuracy", "reward", "loss_per_token", "loss_per_sequence"]),
    tolerate=st.dictionaries(st.sampled_from(["id", "ood"]), st.floats(0, 0.2)),
)
def test_the_choice_does_not_look_at_the_report_half(
    shares: list[tuple[float, float]], which: set[int], measure: str, tolerate: Shares
) -> None:
    """Whatever answers of the report half become, of all rows, the same one is chosen, for the same reasons."""
    wanted = aim(measure=measure, tolerate=dict(tolerate))
    found = entries(wanted, {f"v{i}": {"id": a, "ood": b} for i, (a, b) in enumerate(shares)})
    others = [
        replace(each, scored=(known := turned(each.scored, which)), scores=scores_of(known, wanted)) for each in found
    ]
    first, second = make_rows(found, wanted), make_rows(others, wanted)
    for row, other in zip(first, second, strict=True):
        assert (row.best, row.allowed, row.objective) == (other.best, other.allowed, other.objective)
        assert row.scores["selection"] == other.scores["selection"]
        assert row.to_start.get("selection") == other.to_start.get("selection")
    assert sum(row.best for row in first) == 1


def test_rows_hold_what_the_samples_come_to() -> None:
    """Scores of all and of each half, paired differences from the start, corrected within each half."""
    wanted = aim()
    found = entries(wanted, {"a": {"id": 0.5, "ood": 0.4}, "b": {"id": 0.6, "ood": 0.2}})
    rows = {row.name: row for row in make_rows(found, wanted)}
    known = {each.name: each.scored for each in found}
    for half in ("all", "selection", "report"):
        part = restricted(known["a"], half)
        expected = score([each for each in part.samples if each.split == "ood"]).accuracy
        assert rows["a"].scores[half]["ood"] == expected
        paired = compare(restricted(known["sft"], half), part, "ood").differences["accuracy"]
        difference = rows["a"].to_start[half]["ood"]
        assert replace(difference, adjusted=None) == paired
        assert difference.adjusted is not None
        assert difference.adjusted >= difference.p
    assert rows["sft"].to_start == {}
    assert rows["base"].to_start["all"]["id"].value < 0
    assert rows["a"].best
    assert rows["a"].pareto
    assert (rows["a"].recipe, rows["base"].recipe) == ("a", None)


def test_examples_of_several_seeds_are_paired_by_index() -> None:
    """The same problem under two seeds is two examples, of one cluster."""
    wanted = aim(("id",))

    def of(name: str, first: bool, second: bool) -> Entry:
        samples = [sample("id", i, first if i < 6 else second, key=f"key {i % 6}") for i in range(12)]
        known = Scored(Model(name, name, None), tuple(samples))
        return entry(name, wanted, known, "model" if name == "sft" else "variant")

    rows = make_rows([of("sft", True, False), of("a", False, True)], wanted)
    difference = rows[1].to_start["all"]["id"]
    assert (difference.n, difference.value) == (12, 0.0)


def test_one_row_is_no_division_by_zero() -> None:
    """The start alone is chosen, and on the front."""
    wanted = aim()
    (row,) = make_rows([entry("sft", wanted, scored("sft", {"id": 0.5, "ood": 0.2}), "model")], wanted)
    assert row.best
    assert row.pareto
    assert row.allowed
