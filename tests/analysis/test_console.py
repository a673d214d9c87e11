"""A comparison as a terminal shows it: whatever its width and the names, nothing folds and nothing is obeyed."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console

from surgery.analysis import console
from surgery.analysis.comparison import Comparison
from tests.analysis.comparisons import ATTENTION, EXPERTS, MLP, comparison, hostile

THREE = ("base", "sft", "rl")
Printed = Callable[[Comparison, int], str]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    """`printed(comparison, width)` is what is printed in so many columns."""

    def show(data: Comparison, width: int) -> str:
        out = io.StringIO()
        made = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
        monkeypatch.setattr(console, "make_console", lambda: made)
        console.print_comparison(data, None)
        return out.getvalue()

    return show


def tables(text: str) -> str:
    """What is printed before the prose."""
    return text.partition("medians over")[0].partition("\n")[2]


@pytest.mark.parametrize("width", [60, 80, 99, 100, 120, 2000])
def test_nothing_folds(width: int, printed: Printed) -> None:
    """Every line fits, every heading is whole, and each layer has its line in each map."""
    modules = (*ATTENTION, *EXPERTS, *MLP, "block.of.a.long.name.router_proj")
    data = comparison(THREE, layers=3, modules=modules, experts=2)
    text = printed(data, width)
    assert max(map(cell_len, tables(text).splitlines())) <= width
    for heading in ("q_proj", "o_proj", "experts.down_proj", "mlp.up_proj", "router_proj"):
        assert tables(text).count(f" {heading}") >= len(data.pairs)
    table = text.partition("rotated most ")[2].partition("note:")[0].splitlines()[1:]
    rows = [line for line in table if line.strip()]
    assert len(rows) == 10
    assert all(line.split()[0].endswith("weight") or "weight[" in line for line in rows)
    assert max(map(cell_len, rows)) <= width


def test_a_map_in_blocks(printed: Printed) -> None:
    """Modules that do not fit stand below, under their own headings; all numbers are there."""
    data = comparison(layers=2)
    wide, narrow = (tables(printed(data, width)) for width in (120, 60))
    assert wide.count("layer  ") == 1
    assert narrow.count("layer  ") == 2
    numbers = [
        sorted(word for word in text.split() if word.count(".") == 1 and word[0].isdigit()) for text in (wide, narrow)
    ]
    assert set(numbers[0]) <= set(numbers[1])


def test_the_pairs_as_lines(printed: Printed) -> None:
    """Below 100 columns each figure has its line, from 100 on a table; both tell the same."""
    text = printed(comparison(), 80)
    assert "compared: base -> sft\nmatrices: 30\nequal: 0\nrotation: " in text
    assert "\nchance: 5 %\nmoved back: -\n" in text
    assert "compared     matrices  equal  rotation" in printed(comparison(), 120)


def test_foreign_names_are_not_obeyed(printed: Printed) -> None:
    """Control characters of models, modules, matrices and remarks are shown as escapes."""
    data = hostile()
    data = dataclasses.replace(
        data, remarks=("`a\x1b[2Jb` is no tensor.",), models={**data.models, "base": "/m/\x1b]0;x"}
    )
    text = printed(data, 200)
    assert not any(c in text for c in "\x1b\x00\u202e")
    assert "note: `a\\x1b[2Jb` is no tensor." in text
    assert "名前\\u202e\\x00" in text


def test_angles_that_are_rounding(printed: Printed) -> None:
    """They are said to be small; none at all is zero."""
    data = comparison()
    columns = ("rotation", "angle_left", "angle_right", "angle_left_max", "angle_right_max")
    text = printed(dataclasses.replace(data, matrices=data.matrices.assign(**dict.fromkeys(columns, 1e-7))), 200)
    assert "rotated by <0.00006 degrees" in text
    assert text.count("<0.00006") > 4 * 7 + 1 + 3 * 10
    zeros = printed(dataclasses.replace(data, matrices=data.matrices.assign(**dict.fromkeys(columns, 0.0))), 200)
    assert "<" not in zeros


def test_medians_are_of_what_changed(printed: Printed) -> None:
    """Frozen matrices are counted beside them."""
    names = list(comparison().matrices["matrix"])
    text = printed(comparison(equal=names[:20]), 80)
    assert "\nequal: 20\nrotation: 0 deg" not in text
    assert "\nequal: 20\n" in text
    assert "there is nothing to restore" in printed(comparison(equal=names), 120)
