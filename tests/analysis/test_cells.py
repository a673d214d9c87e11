"""Cells: what becomes of experts, stacks and names."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import surgery
from surgery.analysis.cells import (
    SAMPLED,
    cells,
    changed,
    inside_layers,
    layer_label,
    mean_spectrum,
    members,
    moved_back,
    moved_back_by,
    of_pair,
    short_names,
    three_layers,
)
from surgery.analysis.comparison import Comparison
from tests.analysis.comparisons import ATTENTION, EXPERTS, MLP, comparison
from tests.pairs import llama, near, write


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
    """Figures over layers show the decoder's stack, or the stack of most matrices, and name it."""
    data = comparison(layers=3)
    assert set(inside_layers(data, data.matrices)["module"]) == {*ATTENTION, *MLP}
    assert layer_label(data) == "layer"
    stack = data.matrices["stack"].where(~data.matrices["layer"].isin([1, 2]), "vision.blocks")
    data = dataclasses.replace(data, matrices=data.matrices.assign(stack=stack))
    for decoder, layers, label in (("model.layers", {0}, "model.layers"), ("", {1, 2}, "vision.blocks")):
        data = dataclasses.replace(data, decoder=decoder)
        assert set(inside_layers(data, data.matrices)["layer"]) == layers
        assert set(inside_layers(data, cells(data))["layer"]) == layers
        assert layer_label(data) == f"layer of {label}"


def test_what_changed() -> None:
    """Matrices that are not equal; heads whose change is not zero."""
    name = "model.layers.0.mlp.up_proj.weight"
    data = comparison(layers=1, equal=[name])
    assert set(data.matrices["matrix"]) - set(changed(data.matrices)["matrix"]) == {name}
    assert list(changed(data.gauge.assign(change=[0.0, 0.1]))["head"]) == [1]


def test_moved_back_is_that_of_all_together() -> None:
    """Weighted by the squared change base -> tuned; what did not change, or is not known, does not count."""
    data = comparison(("base", "sft", "rl"), layers=1, modules=(*EXPERTS[:1], *MLP[:1]), experts=3, outside=False)
    table = data.matrices.assign(moved_back=math.nan, change_energy=99.0)
    table.loc[(table.before == "base") & (table.after == "rl"), "moved_back"] = [1.0, -2.0, math.nan, 0.5]
    table.loc[(table.before == "base") & (table.after == "sft"), "change_energy"] = [1.0, 4.0, 2.0, 0.0]
    data = dataclasses.replace(data, matrices=table)
    rows = of_pair(table, ("base", "rl"))
    assert moved_back(data, rows) == pytest.approx((1 - 8) / 5)
    by = moved_back_by(data, rows, ["module"])
    assert by[EXPERTS[0]] == pytest.approx(-7 / 5)
    assert math.isnan(by[MLP[0]])
    assert of_pair(cells(data), ("base", "rl")).set_index("module")["moved_back"][EXPERTS[0]] == pytest.approx(-7 / 5)
    assert math.isnan(moved_back(data, of_pair(table, ("base", "sft"))))


def test_what_is_infinite_is_left_out_of_means() -> None:
    """A change from nothing does not hide the other experts of its cell, and is the one that is named."""
    data = comparison(modules=EXPERTS[:1], experts=4, layers=1, outside=False)
    table = data.matrices.assign(rotation=math.nan, relative_change=[0.1, 0.4, math.inf, 0.1])
    (row,) = cells(dataclasses.replace(data, matrices=table)).itertuples()
    assert row.relative_change == pytest.approx(0.2)
    assert row.matrix == table["matrix"][2]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("models", [("base", "sft"), ("base", "sft", "rl")])
def test_what_is_made_up_is_like_what_is_measured(models: tuple[str, ...], quick: bool, tmp_path: Path) -> None:
    """`comparisons` has the columns of `surgery.diff`, and for equal and changed matrices its NaN and its zeros."""
    same = "model.layers.0.self_attn.q_proj.weight"
    base = llama(layers=2, width=16)
    for i, model in enumerate(models):
        write(tmp_path / model, near(base, seed=i, change=0.05 * i) | {same: base[same]})
    found = surgery.diff(*(tmp_path / model for model in models), quick=quick)
    made = comparison(models, layers=2, equal=[same], quick=quick)
    assert found.decoder == made.decoder
    for table in ("matrices", "gauge", "embeddings"):
        assert set(getattr(found, table).columns) == set(getattr(made, table).columns)
    for name in (same, "model.layers.1.self_attn.q_proj.weight"):
        real, other = (
            data.matrices.loc[data.matrices["matrix"] == name, list(found.matrices)] for data in (found, made)
        )
        real, other = real.reset_index(drop=True), other.reset_index(drop=True)
        pd.testing.assert_frame_equal(real.isna(), other.isna())
        if name == same:
            fixed = [c for c in real.columns if c in ("energy_ratio", "cos_left", "cos_right") or (real[c] == 0).all()]
            pd.testing.assert_frame_equal(real[fixed], other[fixed], check_dtype=False)


def test_no_rows() -> None:
    """A comparison of nothing has no cells."""
    data = comparison()
    assert len(cells(Comparison(**{**vars(data), "matrices": data.matrices[:0]}))) == 0


def test_members_are_sampled() -> None:
    """Of many experts some, spread from the first to the last; of few all."""
    data = comparison(modules=EXPERTS[:1] + MLP[:1], experts=100, layers=1, n=4)
    found = members(inside_layers(data, data.matrices))
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
