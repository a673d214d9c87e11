"""The figures of a run, as PNG and SVG: the same bytes for the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery import plotting
from surgery.errors import NotInstalledError, OutputError
from surgery.plotting import BLACK, BLUE, VERMILION
from trainers.errors import RunError, TrainingError
from trainers.report import Row, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES, UPDATES = "losses", "updates"  # names of the files, without their endings
FORMATS = plotting.FORMATS
REMEDY = "make room, and run the same command again with `--resume`"
LEGEND = 3  # entries side by side
MARKERS = 25  # on a line at most
NOISY = 200  # points beyond which what is measured at every step is thin, with a smoothed line over it
WINDOWS = 50  # of the smoothed line side by side: as fine as the eye separates in a figure of a page's width
LEAST_SPAN = 0.1  # of its largest value: what an axis spans at least, lest the noise of a constant look like a curve
MARGIN = 0.04  # of the span, above and below it
LOWEST_VARIANCE = -1.0  # explained variance starts anywhere below; the axis is cut there


@dataclass(frozen=True, slots=True)
class _Curve:
    """A figure of the log and how it is drawn: told apart by colour (Okabe and Ito's), dashes and markers."""

    name: str
    label: str
    colour: str = "#000000"
    dashes: str = "-"
    marker: str = "o"
    noisy: bool = True  # measured on what is trained on, at every step


@dataclass(frozen=True, slots=True)
class _Panel:
    """Curves of one unit."""

    unit: str
    curves: tuple[_Curve, ...]
    scale: float = 1.0
    from_zero: bool = False
    lowest: float | None = None  # where the axis is cut


_GREY = "#8C8C8C"
_TRAINING = (_GREY, "-", ".")
_ID = (BLUE, "-", "o", False)
_OOD = (VERMILION, "--", "s", False)
_OTHERS = (
    ("#009E73", "-.", "^", False),
    ("#CC79A7", ":", "v", False),
    ("#56B4E9", "-.", "D", False),
    ("#E69F00", ":", "P", False),
    ("#000000", "--", "X", False),
)

_IN, _OUT = "in distribution (ID)", "out of distribution (OOD)"
_LOSS = _Panel(
    "loss, nats a token",
    (_Curve("loss", "training", *_TRAINING), _Curve("id_loss", _IN, *_ID), _Curve("ood_loss", _OUT, *_OOD)),
)
_ACCURACY = _Panel(
    "accuracy, %", (_Curve("id_accuracy", _IN, *_ID), _Curve("ood_accuracy", _OUT, *_OOD)), 100, from_zero=True
)
_SUCCESS = _Panel(
    "success, %",
    (
        _Curve("success", "training", *_TRAINING),
        _Curve("id_success", "ID", *_ID),
        _Curve("ood_success", "OOD", *_OOD),
    ),
    100,
    from_zero=True,
)
_LENGTH = (_Curve("prompt_tokens", "prompt", BLUE, "--", "s"), _Curve("response_tokens", "response", BLACK))
_RL = (
    _Panel("reward of an episode", (_Curve("reward", "reward", BLACK),)),
    _SUCCESS,
    _Panel("KL to last policy, nats", (_Curve("kl", "KL", BLACK),), from_zero=True),
    _Panel("clipped ratios, %", (_Curve("clip_fraction", "clipped", BLACK),), 100, from_zero=True),
    _Panel("value loss", (_Curve("value_loss", "value loss", BLACK),), from_zero=True),
    _Panel("explained variance", (_Curve("explained_variance", "explained", BLACK),), lowest=LOWEST_VARIANCE),
    _Panel("length, tokens", _LENGTH, from_zero=True),
    _Panel("KL to first policy, nats", (_Curve("reference_kl", "KL", BLACK),), from_zero=True),
)


def need_matplotlib() -> None:
    """Raise TrainingError where figures could not be drawn; to be asked before a run rather than after it."""
    try:
        plotting.need_matplotlib()
    except NotInstalledError as error:
        raise TrainingError(
            f"the figures of a run need `{error.name}`, which is not installed: pip install 'surgery[train]'"
        ) from error


def plot_losses(rows: Sequence[Row], best: int | None, out: Path) -> tuple[Path, ...]:
    """Draw training, ID and OOD loss against SFT steps, and accuracy below where there is any.

    Inter-SFT, the checkpoint of step `best`, is marked by a vertical line. Writes `losses.png` and `losses.svg` into
    the directory `out` and returns their paths; where no loss was finite, nothing. As figure 2 of arXiv 2509.12235.
    Raises TrainingError without matplotlib, and RunError where the files cannot be written.
    """
    panels = [panel for panel in (_LOSS, _with_splits(_ACCURACY, rows, "_accuracy")) if _measured(panel, rows)]
    if not panels:
        return ()
    heights = [3.2, 2.0][: len(panels)]
    with _figure(6.4, sum(heights) + 0.5) as figure:
        stacked = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for panel, axes in zip(panels, stacked, strict=True):
            _draw(axes, panel, rows)
            if best is not None:
                axes.axvline(best, color="black", linestyle=":", linewidth=1.2, zorder=1)
        _steps(stacked[-1], "SFT steps", max(_last(panels, rows), best or 0))
        if best is not None:
            _name_line(stacked[0], best, f"Inter-SFT, step {best:,}")
        named = {str(line.get_label()): line for axes in stacked for line in axes.lines}
        labels = [label for label in named if not label.startswith("_")]  # which matplotlib gives to the nameless
        figure.legend([named[label] for label in labels], labels, loc="outside upper center", ncols=LEGEND)
        return plotting.save(figure, out, LOSSES, REMEDY)


def plot_updates(rows: Sequence[Row], out: Path) -> tuple[Path, ...]:
    """Draw what learning from grades did, against updates, in a panel for each unit; those without data are left out.

    Writes `updates.png` and `updates.svg` into the directory `out` and returns their paths; without data, nothing.
    Raises as `plot_losses`.
    """
    panels = [_with_splits(panel, rows, "_success") if panel is _SUCCESS else panel for panel in _RL]
    panels = [panel for panel in panels if _measured(panel, rows)]
    if not panels:
        return ()
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    with _figure(4.0 * columns, 2.1 * lines + 0.4) as figure:
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel, axes in zip(panels, grid, strict=False):
            _draw(axes, panel, rows)
            _steps(axes, "updates", _last(panels, rows))
            if len(panel.curves) > 1:
                axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=LEGEND, columnspacing=1.2)
        for axes in grid[len(panels) :]:
            axes.remove()
        return plotting.save(figure, out, UPDATES, REMEDY)


def _with_splits(panel: _Panel, rows: Sequence[Row], ending: str) -> _Panel:
    """The panel with a curve for each split besides `id` and `ood` of which the log has figures of that ending."""
    known = {curve.name for curve in panel.curves}
    names = dict.fromkeys(name for row in rows for name in row if name.endswith(ending) and name not in known)
    others = (_Curve(name, name.removesuffix(ending), *look) for name, look in zip(names, cycle(_OTHERS), strict=False))
    return replace(panel, curves=(*panel.curves, *others))


def _measured(panel: _Panel, rows: Sequence[Row]) -> bool:
    return any(math.isfinite(value) for curve in panel.curves for value in series(rows, curve.name)[1])


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure in our style; what goes wrong with it is an error of the run."""
    need_matplotlib()
    try:
        with plotting.figure(width, height) as figure:
            yield figure
    except OutputError as error:
        raise RunError(str(error)) from error


def _draw(axes: Axes, panel: _Panel, rows: Sequence[Row]) -> None:
    """All curves of a panel that have a point."""
    drawn: list[float] = []
    for curve in panel.curves:
        steps, values = series(rows, curve.name)
        values = [panel.scale * value for value in values]
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            continue
        drawn += finite
        label, marker = curve.label, curve.marker
        if curve.noisy and len(finite) > NOISY:
            axes.plot(steps, values, color=curve.colour, alpha=0.35, linewidth=0.5)
            window = 2 * (len(finite) // WINDOWS // 2) + 1
            values = _smoothed(values, window)
            label, marker = f"{label} (mean of {window})", ""
        style: dict[str, Any] = {"linestyle": curve.dashes, "marker": marker}
        every = math.ceil(len(values) / MARKERS)
        axes.plot(steps, values, color=curve.colour, **style, markevery=every, label=label)
    axes.set_ylabel(panel.unit)
    _limit(axes, min(drawn), max(drawn), panel)


def _smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of so many values around each, where they are not nan; near the ends of those that there are.

    At the beginning, where losses fall steeply, as many before a value as after it.
    """
    sums, counts = [0.0], [0]
    for value in values:
        sums.append(sums[-1] + (value if math.isfinite(value) else 0.0))
        counts.append(counts[-1] + math.isfinite(value))
    smoothed = []
    for i in range(len(values)):
        half = min(window // 2, i)
        first, end = i - half, min(i + half + 1, len(values))
        known = counts[end] - counts[first]
        smoothed.append((sums[end] - sums[first]) / known if known else math.nan)
    return smoothed


def _limit(axes: Axes, low: float, high: float, panel: _Panel) -> None:
    """Let the vertical axis span the values, no less than a constant needs, in numbers that can be read."""
    if panel.from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if panel.lowest is not None and low < panel.lowest < high:
        low = panel.lowest
        axes.set_ylabel(f"{panel.unit} \u2265 {panel.lowest:g}".replace("-", "\u2212"))
    span = max(high - low, LEAST_SPAN * max(abs(low), abs(high))) or 1.0
    bottom = min(low, (low + high - span) / 2)
    if bottom < 0 <= low:
        bottom = 0.0  # what is never negative has no axis below zero
    margin = MARGIN * span
    axes.set_ylim(bottom if bottom == panel.lowest else bottom - margin, bottom + span + margin)
    axes.locator_params(axis="y", nbins=6)
    axes.ticklabel_format(axis="y", useOffset=False, useMathText=True, scilimits=(-3, 5))


def _last(panels: Iterable[_Panel], rows: Sequence[Row]) -> int:
    """The last step that anything was measured at."""
    return max(max(series(rows, curve.name)[0], default=0) for panel in panels for curve in panel.curves)


def _steps(axes: Axes, name: str, last: int) -> None:
    """Label the horizontal axis, which begins at 0 and has whole numbers."""
    axes.set_xlabel(name)
    axes.set_xlim(0, 1.02 * max(last, 1))
    axes.locator_params(axis="x", integer=True, nbins=8, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _name_line(axes: Axes, step: int, name: str) -> None:
    """Write above the axes what a vertical line at a step is, and stay inside their width."""
    left, right = axes.get_xlim()
    place = (step - left) / (right - left)
    align = "left" if place < 0.15 else "right" if place > 0.85 else "center"
    axes.annotate(
        name, (step, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points", ha=align
    )
