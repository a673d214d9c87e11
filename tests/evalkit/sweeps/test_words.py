"""What is said of a sweep, whatever came out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.stats import Difference, Estimate
from evalkit.sweeps.choice import make_rows
from evalkit.sweeps.words import difference, figure, words
from tests.evalkit.sweeps.made import VARIANTS, Shares, aim, entries, failed, result


def said(variants: dict[str, Shares] | None = None, **objective: object) -> tuple[str, ...]:
    """The sentences."""
    return result(VARIANTS if variants is None else variants, aim(**objective)).words


def test_the_winner_what_it_is_worth_and_what_averages_are() -> None:
    """Chosen on one half, told on the other, with intervals and paired differences."""
    chosen, told, averages = said()
    assert chosen == (
        "Chosen on the selection half for its accuracy averaged over id and ood there (37.9 %; sft has 34.5 %): "
        "restore head=40%."
    )
    assert told == (
        "On the report half, which the choice has not seen, and against sft: id 38.7 [23.7, 56.2], -19.4 [-32.6, -3.7] "
        "(p = 0.031); ood 41.9 [26.4, 59.2], +22.6 [+6.1, +36.4] (p = 0.016)."
    )
    assert averages == (
        "The best plain average is average alpha=0.5; against it the chosen one has on the report half: id -6.5 "
        "[-16.1, +4.0] (p = 0.5, no difference to rely on), ood +16.1 [+1.6, +28.8] (p = 0.062, no difference to rely "
        "on)."
    )


def test_an_average_may_win() -> None:
    """Then the best other edit is what it is held against, if there is one."""
    best = {"average alpha=0.5": {"id": 0.9, "ood": 0.9}}
    assert said({**VARIANTS, **best})[-1].startswith("It is a plain average of the models; the best other edit is res")
    assert said(best)[-1] == "It is a plain average of the models."


def test_no_average_was_tried() -> None:
    """Then it is not known whether one does as well."""
    assert "whether one does as well is not known" in said({"restore": {"id": 0.9, "ood": 0.9}})[-1]


def test_nothing_is_better_than_the_start() -> None:
    """That is the result, and nothing is handed on as a winner."""
    (only,) = said({"values": {"id": 0.6, "ood": 0.2}})
    assert only.startswith("No variant is better than sft in accuracy averaged over id and ood on the selection half")


def test_variants_that_lose_too_much_are_counted() -> None:
    """With what was tolerated, in points."""
    last = said(tolerate={"id": 0.02, "ood": 0.0})[-1]
    assert (
        last == "3 of 4 variants lose more on the selection half than the tolerated 2 points of id or 0 points of ood."
    )
    assert said({"restore": {"id": 0.1, "ood": 0.9}}, tolerate={"id": 0.1})[-1].startswith("1 of 1 variant loses more")
    lossy = {"restore": {"id": 0.1, "ood": 0.9}}
    assert said(lossy, measure="loss_per_token", tolerate={"id": 0.5})[-1].endswith("than the tolerated 0.5 of id.")


@pytest.mark.parametrize(
    ("objective", "goal"),
    [
        ({"improve": "ood"}, "for its ood accuracy there (41.4 %; sft has 13.8 %)"),
        ({"improve": {"id": 1, "ood": 3}}, "for its weighted accuracy (id 0.25, ood 0.75) there ("),
        ({"measure": "reward", "improve": "ood"}, "for its ood mean reward there (-0.172; sft has -0.724)"),
        ({"measure": "loss_per_sequence", "improve": "ood"}, "for its ood loss a sequence there ("),
    ],
)
def test_goals(objective: dict[str, object], goal: str) -> None:
    """A split, weights, other measures in their own units."""
    assert goal in said(**objective)[0]


def test_numbers_that_are_none() -> None:
    """A dash for what is not known, no interval where it is infinite, and no minus before zero."""
    assert figure(Estimate(math.nan, 0, 1, 0), "accuracy") == "- [0.0, 100.0]"
    assert figure(Estimate(0.5, -math.inf, math.inf, 1), "reward") == "0.500"
    assert difference(Difference(-0.00001, -math.inf, math.inf, 1, 1.0), "accuracy") == "+0.0"
    assert difference(Difference(math.nan, -1, 1, 0, 1.0), "accuracy") == "-"


@settings(max_examples=25)
@given(
    shares=st.lists(st.tuples(st.sampled_from(["restore", "average"]), st.floats(0, 1), st.floats(0, 1)), max_size=4),
    measure=st.sampled_from(["accuracy", "reward", "loss_per_token", "loss_per_sequence"]),
    tolerate=st.dictionaries(st.sampled_from(["id", "ood"]), st.floats(0, 0.2)),
    n=st.integers(12, 30),
)
def test_whatever_came_out(
    shares: list[tuple[str, float, float]], measure: str, tolerate: dict[str, float], n: int
) -> None:
    """There is something to say of it, in whole sentences, that names the winner or says that there is none."""
    wanted = aim(measure=measure, tolerate=tolerate)
    found = entries(wanted, {f"{kind} {i}": {"id": a, "ood": b} for i, (kind, a, b) in enumerate(shares)}, n)
    rows = make_rows(found, wanted)
    sentences = words(rows, found, wanted)
    assert all(sentence.endswith(".") and "nan" not in sentence for sentence in sentences)
    best = next(row for row in rows if row.best)
    assert any(best.name in sentence for sentence in sentences)


def test_something_better_was_refused() -> None:
    """It is not said that no variant is better where one is that loses too much: that one is named."""
    first, counted = said({"bold": {"id": 0.4, "ood": 0.9}, "mild": {"id": 0.1, "ood": 0.7}}, tolerate={"id": 0.02})
    assert first.startswith("Of the variants that lose no more than is tolerated, none is better than sft in accuracy")
    assert "The best of those that lose more is bold (" in first
    assert counted.startswith("2 of 2 variants lose more")
    first, counted = said({"weak": {"id": 0.1, "ood": 0.1}}, tolerate={"id": 0.02})
    assert first.startswith("No variant is better than sft")
    assert counted.startswith("1 of 1 variant loses more")


def test_what_could_not_be_made_is_told_and_counts_for_nothing() -> None:
    """Some are named with the reason, and the others are counted; it is not that they lose too much."""
    sentences = result(wanted=aim(tolerate={"id": 0.02}), more=[failed(f"big w={i}") for i in range(5)]).words
    assert sentences[-4:] == (
        *(f"big w={i} could not be made: `w`: the result reaches 1e+06." for i in range(3)),
        "2 more could not be made; the table of the report says why.",
    )
    assert " of 4 variants " in sentences[-5]
    none = result({}, more=[failed("big w=1")]).words
    assert none[0] == "None of the variants could be made: nothing was chosen beside sft."
    assert none[1].startswith("big w=1 could not be made")
