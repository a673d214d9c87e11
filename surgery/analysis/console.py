"""What a person sees of a comparison: a heat map and tables on stdout, progress on stderr."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from surgery.analysis.advice import advise
from surgery.analysis.cells import cells, inside_layers, of_pair, short_names
from surgery.analysis.store import FIGURES, REPORT
from surgery.analysis.summary import most_rotated
from surgery.console import WorkProgress, make_console, make_table
from surgery.header import shown

if TYPE_CHECKING:
    from surgery.analysis.attention import Attention
    from surgery.analysis.comparison import Comparison
    from surgery.analysis.matching import Matching, Matrix

PROSE = 110  # characters of a line of prose at most
SHADES = " ░▒▓█"  # they read without colour
COLOURS = ("grey37", "blue", "cyan", "yellow", "bright_white")


def print_comparison(comparison: Comparison, out: Path | None) -> None:
    """The heat map of each pair, what rotated most, the figures in short, and what to try."""
    console = make_console()
    kind = "leading directions only" if comparison.quick else "all directions"
    models = ", ".join(f"{name} ({source})" for name, source in comparison.models.items())
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
        _say(console, f"note: {remark}")
    for item in advise(comparison):
        _say(console, item.text)
        for command in item.commands:
            console.print(f"    {command}", soft_wrap=True)
    if out is not None:
        console.print(f"\n{out}: {REPORT}, {FIGURES}/, matrices.parquet, spectra.npz, summary.json", soft_wrap=True)


def _say(console: Console, text: str) -> None:
    """Prose, in lines that can be read; paths and names are not cut."""
    width = min(PROSE, console.width)
    console.print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False), soft_wrap=True)


def _print_map(console: Console, comparison: Comparison, pair: tuple[str, str]) -> None:
    """Mean principal angle, in degrees, of each module in each layer: a number and a shade."""
    table = of_pair(cells(comparison), pair)
    inside = inside_layers(table)
    names = short_names(inside["module"])
    layers = sorted(inside["layer"].unique())
    console.print(f"{pair[0]} -> {pair[1]}: mean principal angle of the leading {comparison.ranks[0]}, degrees")
    if not layers:
        console.print("no layers; see the table below")
        return
    most = math.degrees(inside["rotation"].max())
    digits = _digits(most)
    grid = make_table("layer", *names.values(), right=["layer", *names.values()])
    angles = {(row.layer, row.module): math.degrees(row.rotation) for row in inside.itertuples()}
    for layer in layers:
        grid.add_row(str(layer), *(_cell(angles.get((layer, module)), most, digits) for module in names))
    console.print(grid)


def _digits(most: float) -> int:
    """Decimals with which the largest angle of a map has three digits: the same for all its numbers."""
    return min(6, max(0, 2 - math.floor(math.log10(most)))) if most > 0 else 0


def _cell(degrees: float | None, most: float, digits: int) -> Text:
    """The number, shaded by how much it is of the largest."""
    if degrees is None or math.isnan(degrees):
        return Text("-")
    part = degrees / most if most > 0 else 0.0
    shade = min(len(SHADES) - 1, int(part * len(SHADES)))
    return Text.assemble(f"{degrees:.{digits}f} ", (SHADES[shade], COLOURS[shade]))


def _print_pairs(console: Console, comparison: Comparison) -> None:
    """The figures in short."""
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
    table = make_table(*columns, right=columns[1:])
    for pair in comparison.pairs:
        rows, gauge = of_pair(comparison.matrices, pair), of_pair(comparison.gauge, pair)
        changed = rows[~rows["equal"].astype(bool)]
        table.add_row(
            f"{pair[0]} -> {pair[1]}",
            f"{len(rows):,}",
            f"{int(rows['equal'].sum()):,}",
            f"{_number(math.degrees(rows['rotation'].median()))} deg",
            _share(rows["relative_change"].median()),
            _share(rows["values_change"].median()),
            _number(rows[["cos_left", "cos_right"]].mean(axis=1).median()),
            _share(1 - changed["diagonal_share"].median()),
            _share(gauge["explained"].median()),
            _share(gauge["chance"].median()),
            _share(rows["moved_back"].mean()),
        )
    console.print(table)
    _say(
        console,
        "medians over the matrices: change and values relative to before; |cos| of matching directions; off-diag, the "
        "share of the change that rotates (at random nearly all); gauge, the share of value/output change that changes "
        "nothing, beside that of a change at random",
    )


def _print_most_rotated(console: Console, comparison: Comparison) -> None:
    pair = comparison.pairs[0]
    columns = ("rotated most", "shape", "left, deg", "right, deg", "largest", "change", "values", "intruders")
    table = make_table(*columns, right=columns[2:])
    for row in most_rotated(comparison, pair).itertuples():
        table.add_row(
            shown(row.matrix),
            f"{row.rows} x {row.cols}",
            *(_number(math.degrees(angle)) for angle in (row.angle_left, row.angle_right)),
            _number(math.degrees(max(row.angle_left_max, row.angle_right_max))),
            _share(row.relative_change),
            _share(row.values_change),
            f"{max(row.intruders_left, row.intruders_right)} of {row.rank}",
        )
    console.print(table)


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
