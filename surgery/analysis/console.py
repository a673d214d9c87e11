"""What a person sees of a comparison: a heat map and tables on stdout, progress on stderr."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from surgery.analysis.advice import advise
from surgery.analysis.cells import cells, inside_layers, of_pair, short_names
from surgery.analysis.measures import BELOW, LEAST_ANGLE, legible
from surgery.analysis.store import FIGURES, REPORT
from surgery.analysis.summary import most_rotated, pair_figures
from surgery.console import WorkProgress, make_console, make_table

if TYPE_CHECKING:
    from surgery.analysis.attention import Attention
    from surgery.analysis.comparison import Comparison
    from surgery.analysis.matching import Matching, Matrix

PROSE = 110  # characters of a line of prose at most
NARROW = 100  # columns of a terminal below which tables are made smaller
GAP = 2  # columns between those of a table
LEAST_NAME = 12  # columns that are left to a name, whatever stands beside it
SHADES = " ░▒▓█"  # they read without colour
COLOURS = ("grey37", "blue", "cyan", "yellow", "bright_white")


def print_comparison(comparison: Comparison, out: Path | None) -> None:
    """The heat map of each pair, what rotated most, the figures in short, and what to try."""
    console = make_console()
    kind = "leading directions only" if comparison.quick else "all directions"
    models = ", ".join(f"{legible(name)} ({legible(source)})" for name, source in comparison.models.items())
    console.print(Text.assemble(("spectral comparison", "bold"), f"  {models}; {kind}"))
    for pair in comparison.pairs:
        console.print()
        _print_map(console, comparison, pair)
    console.print()
    _print_pairs(console, comparison)
    console.print()
    _print_most_rotated(console, comparison)
    console.print()
    for remark in comparison.remarks:
        _say(console, f"note: {legible(remark)}")
    for item in advise(comparison, absolute=False):
        _say(console, legible(item.text))
        for command in item.commands:
            console.print(f"    {legible(command)}", soft_wrap=True)
    if out is not None:
        console.print(f"\n{out}: {REPORT}, {FIGURES}/, matrices.parquet, spectra.npz, summary.json", soft_wrap=True)


def _say(console: Console, text: str) -> None:
    """Prose, in lines that can be read; paths and names are not cut."""
    width = min(PROSE, console.width)
    console.print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False), soft_wrap=True)


def _print_map(console: Console, comparison: Comparison, pair: tuple[str, str]) -> None:
    """Mean principal angle, in degrees, of each module in each layer: a number and a shade.

    As many modules side by side as fit, the others below.
    """
    inside = inside_layers(comparison, of_pair(cells(comparison), pair))
    layers = sorted(inside["layer"].unique())
    _say(console, f"{_arrow(pair)}: mean principal angle of the leading {comparison.ranks[0]}, degrees")
    if not layers:
        console.print("no layers; see the table below")
        return
    most = math.degrees(inside["rotation"].max())
    digits = _digits(most)
    angles = {(row.layer, row.module): math.degrees(row.rotation) for row in inside.itertuples()}
    room = console.width - len("layer") - GAP
    columns = {}
    for module, name in short_names(inside["module"]).items():
        column = [_cell(angles.get((layer, module)), most, digits) for layer in layers]
        columns[_shortened(legible(name), room)] = column
    for names in _blocks({name: _width([name, *(text.plain for text in columns[name])]) for name in columns}, room):
        grid = make_table("layer", *names, right=["layer", *names])
        for i, layer in enumerate(layers):
            grid.add_row(str(layer), *(columns[name][i] for name in names))
        console.print(grid)


def _blocks(widths: dict[str, int], room: int) -> list[list[str]]:
    """The names in runs, each no wider than `room`."""
    blocks: list[list[str]] = []
    left = 0
    for name, width in widths.items():
        if not blocks or width > left:
            blocks.append([])
            left = room
        blocks[-1].append(name)
        left -= width + GAP
    return blocks


def _arrow(pair: tuple[str, str]) -> str:
    return f"{legible(pair[0])} -> {legible(pair[1])}"


def _width(texts: Sequence[str]) -> int:
    """Columns of the widest."""
    return max(map(cell_len, texts), default=0)


def _shortened(name: str, room: int) -> str:
    """The end of a name, which tells most, in so many columns."""
    if cell_len(name) <= room:
        return name
    while name and cell_len(name) > max(room, LEAST_NAME) - 1:
        name = name[1:]
    return f"…{name}"


def _digits(most: float) -> int:
    """Decimals with which the largest angle of a map has three digits: the same for all its numbers."""
    return min(6, max(0, 2 - math.floor(math.log10(most)))) if most > 0 else 0


def _cell(degrees: float | None, most: float, digits: int) -> Text:
    """The number, shaded by how much it is of the largest."""
    if degrees is None or math.isnan(degrees):
        return Text("-")
    part = degrees / most if most > 0 else 0.0
    shade = min(len(SHADES) - 1, int(part * len(SHADES)))
    number = f"<{BELOW}" if 0 < degrees < LEAST_ANGLE else f"{degrees:.{digits}f}"
    return Text.assemble(f"{number} ", (SHADES[shade], COLOURS[shade]))


def _print_pairs(console: Console, comparison: Comparison) -> None:
    """The figures in short: a table, or lines where it would not fit."""
    columns = (
        "compared",
        "matrices",
        "equal",
        "rotation",
        "change",
        "values",
        "|cos|",
        "off-diag",
        "gauge",
        "chance",
        "moved back",
    )
    rows = [_figures_of(comparison, pair) for pair in comparison.pairs]
    widths = [_width(column) for column in zip(columns, *rows, strict=True)]
    if console.width < max(NARROW, sum(widths) + GAP * (len(widths) - 1)):
        for row in rows:
            for name, value in zip(columns, row, strict=True):
                console.print(f"{name}: {value}", soft_wrap=True)
    else:
        table = make_table(*columns, right=columns[1:])
        for row in rows:
            table.add_row(*row)
        console.print(table)
    _say(
        console,
        "medians over what changed: change and values relative to before; |cos| of matching directions; off-diag, the "
        "share of the change that rotates (at random nearly all); gauge, the share of value/output change that changes "
        "nothing, beside that of a change at random",
    )


def _figures_of(comparison: Comparison, pair: tuple[str, str]) -> list[str]:
    """The row of a pair."""
    figures = {name: math.nan if value is None else value for name, value in pair_figures(comparison, pair).items()}
    return [
        _arrow(pair),
        f"{figures['matrices']:,}",
        f"{figures['equal']:,}",
        f"{_angle(math.radians(figures['rotation_degrees_median']))} deg",
        _share(figures["relative_change_median"]),
        _share(figures["values_change_median"]),
        _number(figures["cos_median"]),
        _share(figures["off_diagonal_share_median"]),
        _share(figures["gauge_explained_median"]),
        _share(figures["gauge_chance"]),
        _share(figures["moved_back"]),
    ]


def _print_most_rotated(console: Console, comparison: Comparison) -> None:
    """Names are cut at their beginning where there is no room; a narrow terminal has fewer columns."""
    rows = [_turned(row) for row in most_rotated(comparison, comparison.pairs[0]).itertuples()]
    columns = ["rotated most", "shape", "left, deg", "right, deg", "largest", "change", "values", "intruders"]
    kept = [0, 2, 3, 5] if console.width < NARROW else range(len(columns))
    columns = [columns[i] for i in kept]
    lines = [[row[i] for i in kept] for row in rows]
    others = [_width(column) for column in list(zip(columns, *lines, strict=True))[1:]]
    room = console.width - sum(others) - GAP * len(others)
    table = make_table(*columns, right=columns[1 if console.width < NARROW else 2 :])
    for name, *values in lines:
        table.add_row(_shortened(name, room), *values)
    console.print(table)


def _turned(row: Any) -> list[str]:
    """A matrix and what stands beside it."""
    return [
        legible(row.matrix),
        f"{row.rows} x {row.cols}",
        _angle(row.angle_left),
        _angle(row.angle_right),
        _angle(max(row.angle_left_max, row.angle_right_max)),
        _share(row.relative_change),
        _share(row.values_change),
        f"{max(row.intruders_left, row.intruders_right)} of {row.rank}",
    ]


def _angle(radians: float) -> str:
    """In degrees; what is but rounding is said to be small."""
    degrees = math.degrees(radians)
    return f"<{BELOW}" if 0 < degrees < LEAST_ANGLE else _number(degrees)


def _number(value: float) -> str:
    """Three digits; a dash for what is not known."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{_number(100 * value)} %"


class DiffProgress(WorkProgress):
    """Progress of `diff`."""

    def __init__(self) -> None:
        super().__init__("diff", "matrices and attention modules")

    def begin(self, matching: Matching) -> None:
        """The run starts."""
        self._begin(sum(job.flops for job in matching.jobs), len(matching.jobs))

    def finished(self, job: Matrix | Attention, resumed: bool) -> None:  # noqa: ARG002 - the protocol's
        """A matrix or an attention module is measured."""
        self._advance(job.flops)

    def drawing(self) -> None:
        """Everything is measured."""
        self._say("drawing")
