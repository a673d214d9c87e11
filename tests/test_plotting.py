"""What all figures share: foreign names, looks, legends."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text

from surgery.errors import NotInstalledError, SurgeryError
from surgery.plotting import (
    figure,
    legend_above,
    look,
    need_matplotlib,
    pair_label,
    plain,
    plain_log_axis,
)


@given(st.text())
def test_foreign_names(name: str) -> None:
    """Any text becomes one short line that is no formula and that legends show."""
    shown = plain(name)
    assert shown.isprintable()
    assert len(shown.replace(r"\$", "$")) <= 25
    assert not is_math_text(shown) or "$" not in shown
    assert not shown.startswith("_")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sft", "sft"),
        ("a" * 24, "a" * 24),
        ("a" * 20 + "b" * 20, "a" * 11 + "…" + "b" * 12),
        ("_x", " _x"),
        ("$x$", r"\$x\$"),
        ("模\n型", "???"),
    ],
)
def test_plain(name: str, shown: str) -> None:
    """What is short stays; the middle of what is long goes; what the font lacks is a question mark."""
    assert plain(name) == shown


def test_pair_label() -> None:
    """On one line where there is room, else on two."""
    assert pair_label(("base", "sft")) == "base → sft"
    assert pair_label(("base", "sft"), 0.5) == "base →\nsft"


def test_looks_differ() -> None:
    """Of twelve lines each two differ in dashes or marker, so that grey is enough."""
    assert len({(look(i).dashes, look(i).marker) for i in range(21)}) == 21
    assert len({look(i).colour for i in range(7)}) == 7


def test_a_legend_names_each_label_once() -> None:
    """Panels that show the same lines share one entry."""
    with figure(4, 3) as drawing:
        panels = drawing.subplots(1, 2)
        for axes in panels:
            axes.plot([1, 2], label="same")
        panels[1].plot([2, 1], label="other")
        legend_above(drawing, 4, panels)
        assert [text.get_text() for text in drawing.legends[0].get_texts()] == ["same", "other"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.11, 0.9], {"0.2", "0.5"}),
        ([1e-4, 30], {"0.001", "0.1", "10"}),
        ([3.1, 4.6], {"3.5", "4"}),
        ([2.0, 2.0], {"2"}),
    ],
)
def test_logarithmic_axes_have_plain_numbers(values: list[float], shown: set[str]) -> None:
    """Some numbers stand on every axis, however much it spans, none of them as a power."""
    with figure(4, 3) as drawing:
        axes = drawing.subplots()
        axes.plot([1, 2], values)
        plain_log_axis(axes, "y")
        drawing.draw_without_rendering()
        low, high = axes.get_ylim()
        found = {t.get_text() for t in axes.get_yticklabels(which="both") if low <= t.get_position()[1] <= high} - {""}
    assert shown <= found
    assert len(found) <= 9


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours that says what is missing and how to get it."""
    need_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure")
    with pytest.raises(NotInstalledError, match=r"figures need `matplotlib.*pip install 'surgery\[diff\]'") as caught:
        need_matplotlib()
    assert isinstance(caught.value, SurgeryError)
    assert str(caught.value.name).startswith("matplotlib")


def test_drawing_libraries_come_late() -> None:
    """Importing what draws and reports loads neither matplotlib nor Jinja nor pandas."""
    code = """
import sys
import surgery, surgery.plotting, surgery.analysis.figures, surgery.analysis.report
assert not {"matplotlib", "jinja2", "pandas", "pyarrow", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
