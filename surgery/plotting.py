"""How every figure is drawn: its style, its lines, and its files, which are the same bytes for the same data."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgery.errors import NotInstalledError, OutputError
from surgery.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase
    from numpy.typing import ArrayLike

FORMATS = ("png", "svg")
SHOWN_NAME = 24  # characters of a foreign name in a legend
MARKS = 8  # markers on a line of many points: enough to follow it in grey
LEGEND_CHARACTERS = 15  # of a legend that fit into an inch, line samples included
FEW_DECADES = 100  # the span of a logarithmic axis up to which numbers stand between powers of ten
CHARACTER = 0.075  # inches, of a character of average width in a title
STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.6,  # long enough to tell dashes apart
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text: it can be searched and edited, and the file is small
    "svg.hashsalt": "surgery",  # identifiers that do not change from run to run
}
_UNDATED: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


@dataclass(frozen=True, slots=True)
class Look:
    """What tells a line from the others: its colour, and in grey its dashes and markers."""

    colour: str
    dashes: str | tuple[float, tuple[float, ...]]
    marker: str


# Colours of Okabe and Ito 2008, which most of the colour-blind tell apart; without yellow, too pale for a line.
BLACK, BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE = (
    "#333333",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)
LOOKS = (
    Look(BLACK, "-", "o"),
    Look(BLUE, "--", "s"),
    Look(VERMILION, "-.", "^"),
    Look(GREEN, ":", "D"),
    Look(PURPLE, (0.0, (6.0, 1.5)), "v"),
    Look(SKY, (0.0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)), "P"),
    Look(ORANGE, (0.0, (1.0, 1.0)), "X"),
)


def look(i: int) -> Look:
    """The look of line i; beyond the seventh the colours recur, with other dashes and markers."""
    n = len(LOOKS)
    turn = i // n
    return Look(LOOKS[i % n].colour, LOOKS[(i + 3 * turn) % n].dashes, LOOKS[(i + 5 * turn) % n].marker)


def need_matplotlib() -> None:
    """Raise NotInstalledError where figures could not be drawn; to be asked before the work rather than after it."""
    try:
        import matplotlib.figure
        import matplotlib.style  # noqa: F401 - all that is drawn with
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            f"figures need `{error.name}`, which is not installed: pip install 'surgery[diff]'", name=error.name
        ) from error


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of that many inches, in our style whatever the user's; it has to be saved before the end.

    Raises NotInstalledError without matplotlib.
    """
    need_matplotlib()
    import matplotlib.figure
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        yield matplotlib.figure.Figure((width, height), layout="constrained")


def save(figure: Figure, out: Path, name: str, remedy: str = "make room, or name another place") -> tuple[Path, ...]:
    """Write `name.png` and `name.svg` into the directory `out`, each whole or not at all, and return their paths.

    Raises OutputError, which ends with `remedy`.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # laid out once for all formats: that takes as long as drawing
    written = []
    for kind in FORMATS:
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=_UNDATED[kind])
        path = out / f"{name}.{kind}"
        try:
            write_whole(path, content.getvalue())
        except OSError as error:
            raise OutputError(f"cannot write the figure `{path}`: {error.strerror or error}; {remedy}") from error
        written.append(path)
    return tuple(written)


def pair_label(pair: tuple[str, str], inches: float = math.inf, width: int = 18) -> str:
    """`base → tuned`, on two lines where that is wider than so many inches."""
    before, after = (plain(name, width) for name in pair)
    wide = CHARACTER * (len(before) + len(after) + 3) > inches
    return f"{before} →\n{after}" if wide else f"{before} → {after}"


def plain(name: str, width: int = SHOWN_NAME) -> str:
    """A foreign name as a figure shows it: on one line, short, no formula, only characters that the font has."""
    known = _characters()
    text = "".join(c if c.isprintable() and ord(c) in known else "?" for c in name)
    if len(text) > width:
        head = (width - 1) // 2
        text = f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # matplotlib leaves such a label out of legends


@cache
def _characters() -> frozenset[int]:
    """What matplotlib's own font can draw; for anything else it warns and draws a box."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def draw_line(axes: Axes, x: ArrayLike, y: ArrayLike, style: Look, label: str, shift: int = 0, **more: Any) -> None:
    """A line with a few markers, which stand `shift` eighths further than on a line that may lie below it."""
    points = len(y) if isinstance(y, Sequence) else getattr(y, "size", 1)
    every = max(1, math.ceil(points / MARKS))
    first = shift * every // 8 % every
    look: dict[str, Any] = {"color": style.colour, "linestyle": style.dashes, "marker": style.marker}
    axes.plot(x, y, **(look | {"label": label, "markevery": (first, every)} | more))


def legend_above(figure: FigureBase, inches: float, panels: Iterable[Axes], title: str | None = None) -> None:
    """One legend for all panels, above them, each label once, in as many columns as that width holds."""
    named: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if not named:
        return
    longest = max(len(label) for label in named) + 5
    columns = max(1, min(len(named), int(LEGEND_CHARACTERS * inches / longest)))
    figure.legend([*named.values()], [*named], loc="outside upper center", ncols=columns, title=title)


def whole_numbers(axes: Axes, label: str, ticks: int = 8) -> None:
    """Label a horizontal axis on which only whole numbers mean anything."""
    axes.set_xlabel(label)
    axes.locator_params(axis="x", integer=True, nbins=ticks, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter("{x:,.0f}")


def plain_log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis with data logarithmic, its numbers as people write them: at 1, 2 and 5 of a decade where few fit."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    steps = (1.0, 2.0, 5.0) if high < FEW_DECADES * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps) if high > 4 * low else MaxNLocator(4))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
