"""One half to choose by, the other to report on."""

from __future__ import annotations

from evalkit.sweeps.halves import empty_halves, half_of, restricted
from evalkit.tasks.general_points import GeneralPoints
from tests.evalkit.sweeps.made import sample, scored


def test_halves_are_the_same_for_ever() -> None:
    """A key's half depends on nothing but the key: these were found when the first sweep ran."""
    known = ["selection", "selection", "selection", "selection", "report", "report", "selection", "selection"]
    assert [half_of(f"key {i}") for i in range(8)] == known


def test_halves_are_halves() -> None:
    """Of a thousand keys about half are in each."""
    share = sum(half_of(str(i)) == "report" for i in range(1000)) / 1000
    assert 0.45 < share < 0.55


def test_the_orders_of_a_hand_are_in_one_half() -> None:
    """Hands of the same cards, and of other seeds, have one key, and so one half."""
    task = GeneralPoints()
    examples = [example for seed in range(3) for example in task.examples("id", 100, seed)]
    hands: dict[tuple[str, ...], set[str]] = {}
    for example in examples:
        hands.setdefault(tuple(sorted(map(str, example.data["cards"]))), set()).add(half_of(example.key))
    assert len(hands) < len(examples)
    assert all(len(halves) == 1 for halves in hands.values())


def test_restricted_parts_samples_and_losses() -> None:
    """Every example is in one of the halves, and `all` is all."""
    known = scored("m", {"id": 0.5, "ood": 0.5})
    selection, report = restricted(known, "selection"), restricted(known, "report")
    assert restricted(known, "all") is known
    assert {*selection.samples} | {*report.samples} == {*known.samples}
    assert len(selection.samples) + len(report.samples) == len(known.samples)
    assert {loss.key for loss in selection.losses} == {each.key for each in selection.samples}
    assert {half_of(each.key) for each in report.samples} == {"report"}


def test_a_half_without_examples() -> None:
    """One key leaves one half empty, none both; two of different halves leave none."""
    selection, report = sample("id", 0, True, key="key 0"), sample("id", 0, True, key="key 4")
    assert empty_halves([selection.key, selection.key]) == ["report"]
    assert empty_halves([report.key]) == ["selection"]
    assert empty_halves([]) == ["selection", "report"]
    assert empty_halves([selection.key, report.key]) == []
