"""Figures of runs: what is on them, and that they come out the same each time."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from trainers.errors import RunError, TrainingError
from trainers.plots import (
    LOWEST_VARIANCE,
    NOISY,
    _limit,
    _Panel,
    _smoothed,
    need_matplotlib,
    plot_losses,
    plot_updates,
)

Rows = list[dict[str, Any]]


def sft_rows(steps: int, every: int = 5, accuracy: bool = False) -> Rows:
    """A training loss that falls, and an out-of-distribution loss that rises again."""
    rows: Rows = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "loss": 0.3 + 2 / step + 0.1 * math.sin(step)})
        if step % every == 0:
            rows.append({"step": step, "id_loss": 0.3 + 2 / step, "ood_loss": 0.5 + 2 / step + step / steps})
            if accuracy:
                rows.append({"step": step, "id_accuracy": step / steps, "ood_accuracy": 0.0})
    return rows


def rl_rows(updates: int, value: bool = True) -> Rows:
    """What PPO logs, or, without a value function, GRPO."""
    rows: Rows = []
    for update in range(1, updates + 1):
        row = {"step": update, "reward": update / 4, "success": 0.1, "kl": 1e-5 * update, "clip_fraction": 0.02}
        row |= {"prompt_tokens": 400.0, "response_tokens": 90.0, "turns": 3.0, "seconds": 30.0}
        row |= (
            {"value_loss": 9 / update, "explained_variance": 0.6 - 40 / update**2} if value else {"reference_kl": 0.1}
        )
        rows += [row, {"step": update, "id_success": 0.2, "ood_success": 0.1}]
    return rows


def texts(svg: Path) -> set[str]:
    """All that is written on a figure."""
    return {"".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter() if node.tag.endswith("text")}


def test_losses(tmp_path: Path) -> None:
    """Three losses in nats a token against steps, with the best checkpoint marked; accuracy in a panel of its own."""
    png, svg = plot_losses(sft_rows(100, accuracy=True), 10, tmp_path)
    assert (png, svg) == (tmp_path / "losses.png", tmp_path / "losses.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    expected = {"training", "in distribution (ID)", "out of distribution (OOD)", "SFT steps", "loss, nats a token"}
    assert texts(svg) >= expected | {"accuracy, %", "Inter-SFT, step 10"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.png", "losses.svg"]


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    """No accuracy, no panel; no best checkpoint, no mark; no held-out loss, no entry in the legend."""
    found = texts(plot_losses([{"step": s, "loss": 1 / s} for s in range(1, 50)], None, tmp_path)[1])
    assert found >= {"training", "loss, nats a token"}
    assert not any(word in text for text in found for word in ("accuracy", "Inter-SFT", "distribution"))


def test_updates(tmp_path: Path) -> None:
    """A panel for each unit; a value that runs away is cut, and the axis says so."""
    png, svg = plot_updates(rl_rows(20), tmp_path)
    assert (png.name, svg.name) == ("updates.png", "updates.svg")
    expected = {"reward of an episode", "success, %", "KL to last policy, nats", "clipped ratios, %", "value loss"}
    expected |= {"explained variance ≥ −1", "length, tokens", "training", "ID", "OOD", "prompt", "response", "updates"}
    assert texts(svg) >= expected
    assert "KL to first policy, nats" not in texts(svg)


def test_updates_without_a_value_function(tmp_path: Path) -> None:
    """GRPO has neither value loss nor explained variance."""
    found = texts(plot_updates(rl_rows(20, value=False), tmp_path)[1])
    assert "KL to first policy, nats" in found
    assert not any(word in text for text in found for word in ("value loss", "variance"))


def test_other_splits_have_curves(tmp_path: Path) -> None:
    """Shares of a split that is neither `id` nor `ood` are drawn under its name."""
    rows = [*rl_rows(5), *({"step": step, "all_12_success": 0.2} for step in range(1, 6))]
    assert texts(plot_updates(rows, tmp_path)[1]) >= {"ID", "OOD", "all_12"}
    rows = [*sft_rows(20), *({"step": step, "all_12_accuracy": 0.2} for step in range(5, 21, 5))]
    assert texts(plot_losses(rows, None, tmp_path)[1]) >= {"out of distribution (OOD)", "all_12", "accuracy, %"}


def test_many_points_are_smoothed(tmp_path: Path) -> None:
    """Thousands of points: a line through the noise, which the legend names, and a small file."""
    _, svg = plot_losses(sft_rows(5000), 4900, tmp_path)
    assert {"training (mean of 101)", "Inter-SFT, step 4,900", "5,000"} <= texts(svg)
    assert svg.stat().st_size < 500_000
    _, svg = plot_losses(sft_rows(NOISY), 5, tmp_path)
    assert "training" in texts(svg)


def test_same_bytes_each_time(tmp_path: Path) -> None:
    """No date, no random identifier, and nothing of the user's own settings, which stay as they are."""
    first = [path.read_bytes() for path in plot_losses(sft_rows(300, accuracy=True), 5, tmp_path)]
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "svg.hashsalt": None, "xtick.major.size": 9}):
        again = [path.read_bytes() for path in plot_losses(sft_rows(300, accuracy=True), 5, tmp_path)]
        assert mpl.rcParams["font.size"] == 30
    assert first == again
    assert b"<dc:date>" not in first[1]


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "loss": 2.0}],
        [{"step": 7, "loss": None}, {"step": 8, "loss": 1.0}, {"step": 8, "ood_loss": None}],
        [{"step": step, "loss": 0.5} for step in range(1, 4)],
        [{"step": step, "loss": 0.0, "id_accuracy": 0.0} for step in range(1, 4)],
        [{"step": step, "loss": 0.5 + 1e-12 * step} for step in range(1, 1000)],
        [{"step": step, "loss": None if step % 2 else 1.0} for step in range(1, 1000)],
        [{"step": 10**9, "loss": 1e30}, {"step": 2, "loss": -1e-30}],
        [{"step": 5, "ood_accuracy": 1.0}],
    ],
)
def test_odd_curves(rows: Rows, tmp_path: Path) -> None:
    """One point, gaps, constants, zeros and extremes are drawn without a warning."""
    assert len(plot_losses(rows, 10, tmp_path)) == 2
    assert plot_updates(rows, tmp_path) == ()


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": None}], [{"step": 1, "grad_norm": 1.0}]])
def test_nothing_to_draw(rows: Rows, tmp_path: Path) -> None:
    """Then there are no files."""
    assert plot_losses(rows, None, tmp_path) == plot_updates(rows, tmp_path) == ()
    assert [*tmp_path.iterdir()] == []


# matplotlib widens axes that numbers next to the smallest of float64 would span
numbers = st.floats(-1e60, 1e60).filter(lambda number: number == 0 or abs(number) > 1e-60)


@given(numbers, numbers, st.booleans())
def test_the_axis_holds_the_values(a: float, b: float, from_zero: bool) -> None:
    """All values are inside; what is never negative has hardly any axis below zero; a constant has some room."""
    axes = Figure().subplots()
    low, high = min(a, b), max(a, b)
    _limit(axes, low, high, _Panel("unit", (), from_zero=from_zero))
    bottom, top = axes.get_ylim()
    assert bottom < low <= high < top
    assert top - bottom >= 0.09 * max(abs(low), abs(high))
    assert bottom < 0 < top or not from_zero
    assert low < 0 or bottom >= -0.05 * (top - bottom)


@pytest.mark.parametrize(("low", "bottom"), [(-40.0, LOWEST_VARIANCE), (-0.5, -0.54)])
def test_explained_variance_is_cut(low: float, bottom: float) -> None:
    """Where it begins far below zero, what comes later can still be seen."""
    axes = Figure().subplots()
    _limit(axes, low, 0.5, _Panel("explained variance", (), lowest=LOWEST_VARIANCE))
    assert axes.get_ylim()[0] == pytest.approx(bottom)


def test_a_variance_all_below_the_cut_is_seen() -> None:
    """An axis without a curve would tell nothing."""
    axes = Figure().subplots()
    _limit(axes, -40.0, -30.0, _Panel("explained variance", (), lowest=LOWEST_VARIANCE))
    assert axes.get_ylim() == pytest.approx((-40.4, -29.6))


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-100, 100)), max_size=30), st.integers(0, 5))
def test_smoothed(values: list[float], half: int) -> None:
    """The mean of the finite neighbours, as many before as after at the beginning."""
    smoothed = _smoothed(values, 2 * half + 1)
    for i, found in enumerate(smoothed):
        reach = min(half, i)
        near = [value for value in values[i - reach : i + reach + 1] if math.isfinite(value)]
        assert found == pytest.approx(sum(near) / len(near) if near else math.nan, nan_ok=True, abs=1e-9)
    assert len(smoothed) == len(values)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One message with the command that helps, before a run as after it."""
    need_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure")
    with pytest.raises(TrainingError, match=r"`matplotlib.*pip install 'surgery\[train\]'"):
        need_matplotlib()
    with pytest.raises(TrainingError, match="not installed"):
        plot_losses(sft_rows(5), None, tmp_path)


def test_matplotlib_comes_late() -> None:
    """Importing the file imports no matplotlib, and drawing leaves pyplot and its global figures alone."""
    code = """
import sys, tempfile
from pathlib import Path
from trainers.plots import plot_losses
assert "matplotlib" not in sys.modules
plot_losses([{"step": 1, "loss": 1.0}], None, Path(tempfile.mkdtemp()))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where a directory is needed is one message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write the figure `.*losses\.png`.*make room"):
        plot_losses(sft_rows(5), None, tmp_path / "file")
