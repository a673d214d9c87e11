"""Cells: what becomes of experts, stacks and names."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.analysis.cells import (
    SAMPLED,
    cells,
    inside_layers,
    layer_label,
    mean_spectrum,
    members,
    short_names,
    three_layers,
)
from surgery.analysis.comparison import Comparison
from tests.analysis.comparisons import ATTENTION, EXPERTS, MLP, comparison


def test_experts_share_a_cell() -> None:
    """The mean of every number, NaN left out; how many there are, how many equal, and which rotated most."""
    data = comparison(
        modules=EXPERTS[:1], experts=4, layers=1, outside=False, equal=(f"model.layers.0.{EXPERTS[0]}.weight[2]",)
    )
    table = data.matrices
    (row,) = cells(data).itertuples()
    assert row.rotation == pytest.approx(table["rotation"].mean())
    assert math.isnan(table["diagonal_share"][2])
    assert row.diagonal_share == pytest.approx(table["diagonal_share"].dropna().mean())
    assert (row.count, row.unchanged) == (4, 1)
    assert row.matrix == table.loc[table["rotation"].idxmax(), "matrix"]


def test_without_rotation_the_largest_change_is_named() -> None:
    """A comparison that knows no angles names the expert whose weights changed most."""
    data = comparison(modules=EXPERTS[:1], experts=4, layers=1, outside=False)
    table = data.matrices.assign(rotation=math.nan, relative_change=[0.1, 0.4, 0.2, 0.3])
    (row,) = cells(Comparison(**{**vars(data), "matrices": table})).itertuples()
    assert row.matrix == table["matrix"][1]


def test_modules_come_in_the_order_of_the_data() -> None:
    """Query, key, value, output, gate, up, down, then the rest, whatever the order in the checkpoint."""
    data = comparison(modules=sorted(ATTENTION + MLP), layers=1)
    found = list(dict.fromkeys(cells(data)["module"]))
    assert found == [*ATTENTION, *MLP, "model.embed_tokens", "lm_head"]


def test_several_stacks() -> None:
    """Figures over layers show the stack of most matrices, and name it."""
    data = comparison(layers=3)
    table = data.matrices
    assert set(inside_layers(table)["module"]) == {*ATTENTION, *MLP}
    assert layer_label(table) == "layer"
    table = table.assign(stack=table["stack"].where(table["layer"] != 2, "vision.blocks"))
    assert set(inside_layers(table)["layer"]) == {0, 1}
    assert layer_label(table) == "layer of model.layers"


def test_no_rows() -> None:
    """A comparison of nothing has no cells."""
    data = comparison()
    assert len(cells(Comparison(**{**vars(data), "matrices": data.matrices[:0]}))) == 0


def test_members_are_sampled() -> None:
    """Of many experts some, spread from the first to the last; of few all."""
    table = inside_layers(comparison(modules=EXPERTS[:1] + MLP[:1], experts=100, layers=1, n=4).matrices)
    found = members(table)
    many = found[0, EXPERTS[0]]
    assert len(many) == SAMPLED
    assert (many[0], many[-1]) == (f"model.layers.0.{EXPERTS[0]}.weight[0]", f"model.layers.0.{EXPERTS[0]}.weight[99]")
    assert found[0, MLP[0]] == [f"model.layers.0.{MLP[0]}.weight"]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["self_attn.q_proj", "mlp.up_proj"], ["q_proj", "up_proj"]),
        (["mlp.experts.up_proj", "mlp.up_proj"], ["experts.up_proj", "mlp.up_proj"]),
        (["a.b", "b"], ["a.b", "b"]),
        ([""], [""]),
    ],
)
def test_short_names(modules: list[str], expected: list[str]) -> None:
    """The shortest ending in whole words that no other module shares."""
    assert list(short_names(modules).values()) == expected


@given(st.lists(st.text("ab.", max_size=6)))
def test_short_names_tell_modules_apart(modules: list[str]) -> None:
    """Different modules have different names."""
    names = short_names(modules)
    assert len(set(names.values())) == len(names) == len(set(modules))


@pytest.mark.parametrize(
    ("layers", "expected"), [([], ()), ([5], (5,)), ([2, 1], (1, 2)), ([0, 1, 2], (0, 1, 2)), (range(28), (0, 14, 27))]
)
def test_three_layers(layers: list[int], expected: tuple[int, ...]) -> None:
    """The first, the middle and the last, each once."""
    assert three_layers(layers) == expected


def test_mean_spectrum() -> None:
    """Index by index, over what is there, finite, and of the commonest length."""
    spectra = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 6.0]), "c": np.array([9.0]), "d": np.array([math.nan, 0])}
    np.testing.assert_array_equal(mean_spectrum(spectra, ["a", "missing", "b", "c", "d"]), [2.0, 4.0])
    assert mean_spectrum(spectra, ["d", "missing"]) is None
