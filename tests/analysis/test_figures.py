"""Figures of comparisons: what is drawn equals the data, whatever the model looks like."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from surgery import plotting
from surgery.analysis import figures, figures_gauge, figures_spectra
from surgery.analysis.cells import of_pair
from surgery.analysis.comparison import Comparison
from surgery.errors import NotInstalledError, OutputError
from tests.analysis.comparisons import ATTENTION, EXPERTS, HOSTILE, MLP, comparison, hostile

THREE = ("base", "sft", "rl")
FEW = ("self_attn.v_proj", "self_attn.o_proj")
TWO_FIGURES = ["rotation_map", "relative_change_map", "layers", "values_or_rotation", "singular_values"]
TWO_FIGURES += ["principal_angles", "principal_angles_middle", "principal_angles_last", "low_rank", "gauge"]
TWO_FIGURES += ["embeddings"]
Drawn = dict[str, Figure]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figures by their names, instead of files."""
    kept: Drawn = {}

    def save(figure: Figure, out: Path, name: str) -> tuple[Path, ...]:
        kept[name] = figure
        return (out / name,)

    for module in (figures, figures_spectra, figures_gauge):
        monkeypatch.setattr(module, "save", save)
    return kept


def titled(figure: Figure, title: str) -> Axes:
    """The panel of that title."""
    return next(axes for axes in figure.axes if axes.get_title() == title)


def line(axes: Axes, label: str) -> Any:
    """The vertical data of the line of that label."""
    return next(one for one in axes.lines if one.get_label() == label).get_ydata()


def texts(svg: Path) -> set[str]:
    """All that is written on a figure."""
    return {"".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter() if node.tag.endswith("text")}


def names(paths: tuple[Path, ...]) -> list[str]:
    """Of figures, in order, each of which is there as PNG and SVG."""
    assert all(
        path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml version") for path in paths
    )
    assert [path.suffix for path in paths] == [".png", ".svg"] * (len(paths) // 2)
    return [path.stem for path in paths[::2]]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: comparison(layers=3, modules=FEW), TWO_FIGURES),
        (lambda: comparison(THREE, layers=3, modules=FEW), [*TWO_FIGURES, "moved_back"]),
        (
            lambda: comparison(layers=3, modules=FEW, quick=True),
            [name for name in TWO_FIGURES if name != "low_rank"],
        ),
        (
            lambda: comparison(layers=3, outside=False, modules=MLP[:1]),
            [n for n in TWO_FIGURES if n not in ("gauge", "embeddings")],
        ),
        (
            lambda: comparison(layers=1, outside=False, modules=FEW),
            [n for n in TWO_FIGURES[:-1] if n[16:] not in ("_middle", "_last")],
        ),
        (lambda: comparison(layers=0), ["embeddings"]),
    ],
    ids=["two", "three", "quick", "no attention", "one layer", "no layers"],
)
def test_figures_for_which_there_are_data(made: Callable[[], Comparison], expected: list[str], tmp_path: Path) -> None:
    """Each as PNG and SVG, in this order; a figure without data leaves no file."""
    paths = figures.draw(made(), tmp_path)
    assert names(paths) == expected
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_singular_values(drawn: Drawn, tmp_path: Path) -> None:
    """Values of q, k, v in the first, middle and last layer as they are, logarithmic, and their differences below."""
    data = comparison(THREE, layers=5)
    figures_spectra.singular_values(data, tmp_path)
    panels = drawn["singular_values"].axes
    titles = [axes.get_title() for axes in panels if axes.get_title()]
    assert titles == [f"layer {layer}, {name}_proj" for layer in (0, 2, 4) for name in "qkv"]
    above = titled(drawn["singular_values"], "layer 2, k_proj")
    below = panels[panels.index(above) + 3]
    assert (above.get_yscale(), above.get_shared_x_axes().joined(above, below)) == ("log", True)
    values = {model: data.spectra[f"model.layers.2.self_attn.k_proj.weight/values/{model}"] for model in THREE}
    for model in THREE:
        np.testing.assert_array_equal(line(above, model), values[model])
    for before, after in data.pairs:
        np.testing.assert_array_equal(line(below, f"{after} − {before}"), values[after] - values[before])


def test_values_known_in_part_and_zeros(drawn: Drawn, tmp_path: Path) -> None:
    """Of spectra of different lengths the common part is drawn; zeros have no place on a logarithmic axis."""
    data = comparison(layers=1, modules=("self_attn.q_proj",))
    spectra = dict(data.spectra)
    name = "model.layers.0.self_attn.q_proj.weight/values"
    spectra[f"{name}/base"] = np.array([3.0, 2.0, 0.0, 0.0])
    spectra[f"{name}/sft"] = np.array([3.0, 1.5, 1.0])
    figures_spectra.singular_values(Comparison(**{**vars(data), "spectra": spectra}), tmp_path)
    above, below = drawn["singular_values"].axes
    np.testing.assert_array_equal(line(above, "base"), [3.0, 2.0, math.nan])
    np.testing.assert_array_equal(line(below, "sft − base"), [0.0, -0.5, 1.0])


def test_principal_angles(drawn: Drawn, tmp_path: Path) -> None:
    """In degrees, left and right, both models beside the base on the same axes; the rank as asked and as used."""
    data = comparison(THREE, layers=3)
    figures_spectra.principal_angles(data, tmp_path)
    axes = titled(drawn["principal_angles_middle"], "v_proj, r = 19")
    assert [one.get_label() for one in axes.lines] == [
        f"base → {model}, {side}" for model in ("sft", "rl") for side in ("left", "right")
    ]
    for model in ("sft", "rl"):
        for side in ("left", "right"):
            angles = data.spectra[f"model.layers.1.self_attn.v_proj.weight/angles_{side}@20%/base>{model}"]
            np.testing.assert_allclose(line(axes, f"base → {model}, {side}"), np.degrees(angles), rtol=1e-12)
    legend = drawn["principal_angles_middle"].legends[0]
    assert legend.get_title().get_text() == "layer 1, leading subspaces of rank r = 20%"
    assert [axes.get_title() for axes in drawn["principal_angles"].axes] == [
        f"{name}_proj, r = 19" for name in ("q", "k", "v", "o", "gate", "up", "down")
    ]


@pytest.mark.parametrize(
    ("name", "column", "scale"),
    [("rotation_map", "rotation", 180 / math.pi), ("relative_change_map", "relative_change", 100)],
)
def test_maps(name: str, column: str, scale: float, drawn: Drawn, tmp_path: Path) -> None:
    """Modules by layers, a panel for each pair, one scale for all; the numbers stand in the cells."""
    data = comparison(THREE, layers=3)
    figures.rotation_map(data, tmp_path)
    figure = drawn[name]
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(shown) == len(data.pairs)
    assert len({image.get_clim() for image in shown}) == 1
    for pair, image in zip(data.pairs, shown, strict=True):
        table = of_pair(data.matrices, pair)
        table = table[table["layer"] >= 0].set_index(["layer", "module"])[column]
        expected = [[scale * table[layer, module] for layer in range(3)] for module in ATTENTION + MLP]
        np.testing.assert_allclose(image.get_array(), expected, rtol=1e-12)
        written = [text.get_text() for text in titled(figure, " → ".join(pair)).texts]
        digits = 0 if np.max(image.get_clim()) >= 9.95 else 1
        assert written == [f"{value:.{digits}f}" for row in expected for value in row]
        assert image.get_cmap().name == "cividis"


def test_a_module_that_a_layer_lacks(drawn: Drawn, tmp_path: Path) -> None:
    """Its cell is empty, with a stroke."""
    data = comparison(layers=3)
    matrices = data.matrices[~((data.matrices["layer"] == 1) & (data.matrices["module"] == MLP[0]))]
    figures.rotation_map(Comparison(**{**vars(data), "matrices": matrices}), tmp_path)
    axes = titled(drawn["rotation_map"], "base → sft")
    assert np.argwhere(np.isnan(np.asarray(axes.images[0].get_array().filled(np.nan)))).tolist() == [[4, 1]]
    assert [text.get_text() for text in axes.texts].count("–") == 1


def test_layers(drawn: Drawn, tmp_path: Path) -> None:
    """The mean over modules and the range as a band, in degrees and percent."""
    data = comparison(layers=4)
    figures.layers(data, tmp_path)
    table = data.matrices[data.matrices["layer"] >= 0]
    for axes, column, scale in zip(
        drawn["layers"].axes, ("rotation", "relative_change", "values_change"), (180 / math.pi, 100, 100), strict=True
    ):
        by = [scale * table.loc[table["layer"] == layer, column] for layer in range(4)]
        np.testing.assert_allclose(line(axes, "base → sft"), [values.mean() for values in by], rtol=1e-12)
        band = axes.collections[0].get_paths()[0].vertices
        for layer, values in enumerate(by):
            edge = band[band[:, 0] == layer, 1]
            assert (edge.min(), edge.max()) == pytest.approx((values.min(), values.max()))


def test_what_is_infinite_hides_no_layer(drawn: Drawn, tmp_path: Path) -> None:
    """The mean of a layer is that of its finite matrices."""
    data = comparison(layers=2)
    table = data.matrices
    there = table["matrix"] != "model.layers.1.mlp.up_proj.weight"
    table = table.assign(relative_change=table["relative_change"].where(there, math.inf))
    figures.layers(Comparison(**{**vars(data), "matrices": table}), tmp_path)
    known = table[there & (table["layer"] == 1)]["relative_change"]
    assert line(drawn["layers"].axes[1], "base → sft")[1] == pytest.approx(100 * known.mean())


def test_unchanged_matrices_are_no_part_of_the_bars(drawn: Drawn, tmp_path: Path) -> None:
    """Shares are those of the others; a module without any is said to be unchanged."""
    names = ["model.layers.0.mlp.up_proj.weight", *(f"model.layers.{i}.{ATTENTION[0]}.weight" for i in range(2))]
    data = comparison(layers=2, equal=names)
    figures.values_or_rotation(data, tmp_path)
    bars = drawn["values_or_rotation"].axes[0]
    diagonal = [bar.get_width() for bar in bars.containers[0]]
    share = data.matrices.set_index("matrix")["diagonal_share"]["model.layers.1.mlp.up_proj.weight"]
    assert diagonal[(*ATTENTION, *MLP).index("mlp.up_proj")] == pytest.approx(100 * share)
    assert bars.texts[0].get_text() == "unchanged"


def test_values_or_rotation(drawn: Drawn, tmp_path: Path) -> None:
    """Diagonal and rest add up to the whole change; a point for each matrix."""
    data = comparison(layers=3)
    figures.values_or_rotation(data, tmp_path)
    bars, points = drawn["values_or_rotation"].axes
    table = data.matrices[data.matrices["layer"] >= 0]
    diagonal, rest = ([bar.get_width() for bar in container] for container in bars.containers)
    means = [100 * table.loc[table["module"] == module, "diagonal_share"].mean() for module in ATTENTION + MLP]
    np.testing.assert_allclose(diagonal, means, rtol=1e-12)
    np.testing.assert_allclose(np.add(diagonal, rest), 100)
    expected = {(100 * row.values_change, math.degrees(row.rotation)) for row in table.itertuples()}
    found = points.collections[0].get_offsets()
    np.testing.assert_allclose(sorted(map(tuple, found)), sorted(expected), rtol=1e-12)
    assert points.get_xscale() == "log"


def test_low_rank(drawn: Drawn, tmp_path: Path) -> None:
    """The cumulative squared singular values of the change, in percent, the median over layers."""
    data = comparison(layers=3, modules=MLP)
    spectra = {
        name: value * (np.arange(value.size) % 2 + float("layers.1" in name)) if "change" in name else value
        for name, value in data.spectra.items()
    }
    data = Comparison(**{**vars(data), "spectra": spectra})
    figures_spectra.low_rank(data, tmp_path)
    axes = titled(drawn["low_rank"], "base → sft")
    curves = []
    for layer in range(3):
        squares = data.spectra[f"model.layers.{layer}.mlp.up_proj.weight/change_values/base>sft"] ** 2
        curves.append([100 * squares[: k + 1].sum() / squares.sum() for k in range(squares.size)])
    np.testing.assert_allclose(line(axes, "up_proj"), np.median(curves, axis=0), rtol=1e-12)
    assert axes.get_xscale() == "log"


def test_gauge(drawn: Drawn, tmp_path: Path) -> None:
    """Heads by layers, from 0 to 100 %; the changes before and after alignment and of the product, means of heads."""
    data = comparison(THREE, layers=4)
    figures_gauge.gauge(data, tmp_path)
    panels = drawn["gauge"].axes
    table = of_pair(data.gauge, ("base", "sft"))
    shares = [[100 * v for v in table.loc[table["head"] == head, "explained"]] for head in (0, 1)]
    np.testing.assert_allclose(panels[0].images[0].get_array(), shares, rtol=1e-12)
    assert panels[0].images[0].get_clim() == (0, 100)
    for column, label in figures_gauge._LINES.items():
        means = [100 * table.loc[table["layer"] == layer, column].mean() for layer in range(4)]
        np.testing.assert_allclose(line(panels[3], label), means, rtol=1e-12)


def test_gauge_of_several_attention_modules(drawn: Drawn, tmp_path: Path) -> None:
    """The commonest of the main stack is drawn, and named; others of the same layer do not matter."""
    data = comparison(layers=3)
    figures_gauge.gauge(data, tmp_path)
    alone = np.asarray(drawn["gauge"].axes[0].images[0].get_array())
    assert drawn["gauge"].legends[0].get_title().get_text() == ""
    cross = data.gauge[data.gauge["layer"] < 2].assign(module="cross_attn", explained=0.9)
    tower = pd.concat([data.gauge] * 3).assign(stack="vision.blocks", module="attn")
    several = pd.concat([tower, cross, data.gauge])
    figures_gauge.gauge(Comparison(**{**vars(data), "gauge": several}), tmp_path)
    np.testing.assert_array_equal(drawn["gauge"].axes[0].images[0].get_array(), alone)
    assert drawn["gauge"].legends[0].get_title().get_text() == "attention module self_attn"


def test_embeddings(drawn: Drawn, tmp_path: Path) -> None:
    """Each model a line, in degrees; the level of chance is r / n, which as an angle is arccos of its root."""
    data = comparison(THREE)
    tied = data.embeddings.assign(tied=data.embeddings["model"] == "rl")
    figures_gauge.embeddings(Comparison(**{**vars(data), "embeddings": tied}), tmp_path)
    left, right = drawn["embeddings"].axes
    for model, label in (("base", "base"), ("sft", "sft"), ("rl", "rl (tied)")):
        angles = data.spectra[f"embedding-head/angles@20%/{model}"]
        np.testing.assert_allclose(line(left, label), np.degrees(angles), rtol=1e-12)
        mine = data.embeddings[data.embeddings["model"] == model].sort_values("rank")
        np.testing.assert_allclose(line(right, label), mine["alignment"], rtol=1e-12)
    assert line(left, "by chance")[0] == pytest.approx(math.degrees(math.acos(math.sqrt(19 / 96))))
    chance = [segment[0, 1] for segment in right.collections[0].get_segments()]
    assert chance == pytest.approx([8 / 96, 19 / 96])


def test_moved_back(drawn: Drawn, tmp_path: Path) -> None:
    """The share that the third model undid, in percent, and the rotation of both from the base; not for two."""
    data = comparison(THREE, layers=4)
    assert figures.moved_back(comparison(), tmp_path) == ()
    figures.moved_back(data, tmp_path)
    above, below = drawn["moved_back"].axes
    table = data.matrices[data.matrices["layer"] >= 0]
    first, second = (of_pair(table, pair).set_index(["layer", "module"]) for pair in (("base", "sft"), ("base", "rl")))
    energy = first["change_energy"].groupby("layer")
    together = 100 * (first["change_energy"] * second["moved_back"]).groupby("layer").sum() / energy.sum()
    np.testing.assert_allclose(line(above, "rl: change of base → sft undone"), together, rtol=1e-12)
    for axes, label, pair, column, scale in (
        (below, "base → sft", ("base", "sft"), "rotation", 180 / math.pi),
        (below, "base → rl", ("base", "rl"), "rotation", 180 / math.pi),
    ):
        means = scale * of_pair(table, pair).groupby("layer")[column].mean()
        np.testing.assert_allclose(line(axes, label), means, rtol=1e-12)


def test_experts_are_averaged(drawn: Drawn, tmp_path: Path) -> None:
    """The experts of a module are one cell, its mean, and one line of angles, the mean index by index."""
    data = comparison(modules=EXPERTS, experts=3, layers=2)
    figures.rotation_map(data, tmp_path)
    figures_spectra.principal_angles(data, tmp_path)
    table = data.matrices
    up = table[(table["layer"] == 0) & (table["module"] == EXPERTS[1])]
    assert len(up) == 3
    shown = titled(drawn["rotation_map"], "base → sft").images[0].get_array()
    assert shown[1, 0] == pytest.approx(math.degrees(up["rotation"].mean()))
    angles = np.mean([data.spectra[f"{name}/angles_left@20%/base>sft"] for name in up["matrix"]], axis=0)
    axes = titled(drawn["principal_angles"], "up_proj, r = 19")
    np.testing.assert_allclose(line(axes, "base → sft, left"), np.degrees(angles), rtol=1e-12)


@pytest.mark.parametrize("models", [("base", "sft"), THREE])
def test_nothing_known(models: tuple[str, ...], tmp_path: Path) -> None:
    """Only NaN, no spectra, no tables, no rows: no figures, and no warning."""
    data = comparison(models)
    numbers = [name for name in data.matrices.columns if data.matrices[name].dtype == float]
    blank = data.matrices.assign(**dict.fromkeys(numbers, math.nan))
    bare = {"spectra": {}, "gauge": pd.DataFrame(), "embeddings": pd.DataFrame()}
    assert figures.draw(Comparison(**{**vars(data), **bare, "matrices": blank}), tmp_path) == ()
    assert figures.draw(Comparison(**{**vars(data), **bare, "matrices": data.matrices[:0]}), tmp_path) == ()


def test_all_equal(drawn: Drawn, tmp_path: Path) -> None:
    """Zeros everywhere are drawn; a map without contrast is that of zero."""
    data = comparison(layers=2, outside=False)
    data = comparison(layers=2, outside=False, equal=list(data.matrices["matrix"]))
    figures.draw(data, tmp_path)
    assert titled(drawn["rotation_map"], "base → sft").images[0].get_clim() == (0, 1)


def test_hostile_names(tmp_path: Path) -> None:
    """Formulas, markup, leading underscores, control characters and other scripts are short text, without a warning."""
    paths = figures.draw(hostile(), tmp_path)
    assert len(paths) == 2 * 11
    found = set().union(*(texts(path) for path in paths if path.suffix == ".svg"))
    assert plotting.plain(HOSTILE) in found
    assert "$x_{$" in found  # as text, not as a formula
    assert "_$\\frac$ ??" in found


@pytest.mark.parametrize(
    ("models", "layers", "modules"),
    [
        (("base", "sft"), 1, MLP[:1]),
        (
            ("a-model-of-a-very-long-name-v1.0", "another-model-of-a-long-name-v2", "the-third-model-of-long-name"),
            2,
            ATTENTION + MLP,
        ),
        (
            ("a-model-of-a-very-long-name-v1.0", "another-model-of-a-long-name-v2", "the-third-model-of-long-name"),
            80,
            (*ATTENTION, *EXPERTS, *MLP, "mlp.router", "mlp.shared_expert_gate_proj"),
        ),
    ],
    ids=["least", "two layers", "most"],
)
def test_no_text_overlaps(
    models: tuple[str, ...], layers: int, modules: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of layers and modules and the length of names, no two texts overlap and none is cut off."""
    boxes: dict[str, list[tuple[str, Bbox]]] = {}
    current: dict[int, tuple[str, Bbox]] = {}  # of each text the last place: matplotlib draws twice, to lay out first
    draw = Text.draw

    def recording(self: Text, renderer: Any) -> None:
        draw(self, renderer)
        if self.get_visible() and self.get_text().strip():
            current[id(self)] = self.get_text(), self.get_window_extent(renderer).frozen()

    def save(figure: Figure, out: Path, name: str) -> tuple[Path, ...]:  # noqa: ARG001 - nothing is written
        current.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Text, "draw", recording)
            figure.savefig(tmp_path / "x.png", dpi=figure.dpi)
        boxes[name] = [*current.values()]
        for text, box in boxes[name]:
            assert -1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, f"{name}: {text} is cut off"
        return ()

    for module in (figures, figures_spectra, figures_gauge):
        monkeypatch.setattr(module, "save", save)
    figures.draw(comparison(models, layers=layers, modules=modules, n=24), tmp_path)
    assert len(boxes) >= 8
    for name, found in boxes.items():
        for (one, a), (other, b) in combinations(found, 2):
            width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert width <= 0.5 or height <= 1.5, f"{name}: `{one}` and `{other}` overlap"


def test_same_bytes_each_time(tmp_path: Path) -> None:
    """Nothing of the user's own settings, which stay as they are, and no date."""
    data = comparison(THREE, layers=2)
    first = [path.read_bytes() for path in figures.values_or_rotation(data, tmp_path)]
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": None, "hatch.linewidth": 5}):
        again = [path.read_bytes() for path in figures.values_or_rotation(data, tmp_path)]
        assert mpl.rcParams["font.size"] == 30
    assert first == again


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where a directory is needed is one message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write the figure `.*rotation_map\.png`: .*; make room"):
        figures.draw(comparison(layers=1), tmp_path / "file")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One message with the command that helps."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure")
    with pytest.raises(NotInstalledError, match=r"`matplotlib.*pip install 'surgery\[diff\]'"):
        figures.layers(comparison(layers=1), tmp_path)
