"""Places of plain data."""

from __future__ import annotations

from surgery.source import Mistake, Source, spell

SOURCE = Source("r.yaml", "", {}, {(): 1, ("steps",): 4, ("steps", 0): 5, ("steps", 0, "head"): 6})


def test_spell() -> None:
    """Keys are joined by dots, positions stand in brackets."""
    assert spell(("steps", 0, "select", "layers", 1)) == "steps[0].select.layers[1]"
    assert spell(()) == ""


def test_where() -> None:
    """A place has the line of its key, or of the nearest thing around it that was written."""
    assert SOURCE.where(("steps", 0, "head")) == "r.yaml:6 steps[0].head"
    assert SOURCE.where(("steps", 0, "tail")) == "r.yaml:5 steps[0].tail"
    assert SOURCE.where(()) == "r.yaml:1"
    assert Source("recipe", "", {}).where(("steps", 0)) == "recipe steps[0]"


def test_faults_are_sorted_by_line() -> None:
    """Faults come in the order of the file, those of one line in the order in which they were found."""
    mistakes = [Mistake(("steps", 0), "b"), Mistake((), "a"), Mistake(("steps",), "z", line=5)]
    assert [fault.message for fault in SOURCE.faults(mistakes)] == ["a", "b", "z"]
    assert str(SOURCE.faults(mistakes)[2]) == "r.yaml:5 steps: z"
