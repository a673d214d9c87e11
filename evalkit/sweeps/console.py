"""What a person sees of a sweep: a table on stdout, progress on stderr. Only the command line uses it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import fill

from rich.console import Console
from rich.text import Text

from evalkit.console import NAMES, Column, print_grid
from evalkit.figures import tail_of
from evalkit.progress import Progress as ScoringProgress
from evalkit.progress_bar import ProgressBar
from evalkit.sweeps.bound import Bound
from evalkit.sweeps.report import CHOSEN, FAILED, OPTIMAL, REFUSED, asked, changes, heading, marks, scores
from evalkit.sweeps.result import Row, SweepResult
from surgery.console import ApplyProgress, make_console, make_table
from surgery.size import show_size
from surgery.wording import numbered

WIDTH = 110  # characters of a line of prose
SHORT = 30  # characters of a name that are shown at least
SIGNS = {CHOSEN: ">", OPTIMAL: "^", REFUSED: "!", FAILED: "x"}


def print_sweep(result: SweepResult, out: str) -> None:
    """Scores of all rows, what was chosen, and where everything lies."""
    console = make_console()
    console.print(Text.assemble((result.name, "bold"), f"  {asked(result)}"))
    console.print()
    print_grid(console, _labels(result, console.width), _figures(result))
    console.print(Text("[ ] 95 % interval; * p < 0.05 after Holm's correction; all examples", "dim"))
    said = {mark for row in result.rows for mark in marks(row)}
    if said:
        console.print(Text("; ".join(f"{sign} {mark}" for mark, sign in SIGNS.items() if mark in said), "dim"))
    console.print()
    for sentence in result.words:
        _say(console, sentence)
    console.print()
    files = ("report.html", "pareto.png", "pareto.svg", "rows.jsonl", "report.json")
    for number, row in enumerate(result.rows, 1):
        if row.kept:
            place = f"{out}/best -> {row.kept}" if row.best else f"{out}/{row.kept}"
            console.print(f"{place}: {number} {row.name}", soft_wrap=True)
    console.print(f"{out}/: {', '.join(files)}", soft_wrap=True)


def _labels(result: SweepResult, width: int) -> list[Column]:
    """Signs, the numbers of the figure and the report, and names: their ends, where they are long."""
    room = max(SHORT, int(NAMES * width))
    digits = len(str(len(result.rows)))
    names = [f"{number:{digits}} {tail_of(row.name, room)}" for number, row in enumerate(result.rows, 1)]
    signs = ["".join(SIGNS[mark] for mark in marks(row)) for row in result.rows]
    return [_column(heading(result), names, result), *([_column("", signs, result)] if any(signs) else [])]


def _figures(result: SweepResult) -> list[Column]:
    """Scores by split, then differences from `start` by split."""
    headings = [*result.splits, *(f"{split} − {result.start}" for split in result.splits)]
    table = zip(*([*scores(row, result), *changes(row, result)] for row in result.rows), strict=True)
    return [_column(title, cells, result) for title, cells in zip(headings, table, strict=True)]


def _column(title: str, cells: Sequence[str], result: SweepResult) -> Column:
    return Column(title, [Text(cell, _style(row)) for cell, row in zip(cells, result.rows, strict=True)])


def _style(row: Row) -> str:
    return "bold" if row.best else "dim" if {REFUSED, FAILED} & {*marks(row)} else ""


def _say(console: Console, sentence: str) -> None:
    console.print(fill(sentence, min(WIDTH, console.width), break_long_words=False, break_on_hyphens=False))


def print_bound(bound: Bound) -> None:
    """What a sweep would do."""
    console = make_console()
    table = make_table("variant", "computed", "copied", "writes", right=["computed", "copied", "writes"])
    for work in bound.works:
        computed = sum(tensor.action != "copy" for tensor in work.plan.tensors)
        copied = len(work.plan.tensors) - computed
        table.add_row(work.name, f"{computed:,}", f"{copied:,}", show_size(work.nbytes))
    console.print(table)
    console.print()
    asked = " and ".join(f"{numbered(n, 'example')} of {split}" for split, n in bound.examples.items())
    rows = len(bound.works) + len(bound.models)
    total = show_size(sum(work.nbytes for work in bound.works))
    said = f"{numbered(len(bound.works), 'variant')}, {total} in all; {rows} checkpoints to be asked {asked} each"
    for sentence in (said, *bound.notes):
        _say(console, sentence)


class SweepProgress:
    """Progress of a sweep: a line for each part, a bar within it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._total = self._done = 0
        self.began = False

    def begin(self, models: int, variants: int, known: int) -> None:
        """The sweep starts."""
        self._total, self._done = models + variants, known
        if known:
            are = "is" if known == 1 else "are"
            self.note(f"{known} of {numbered(variants, 'variant')} {are} known from an earlier run")

    @contextmanager
    def making(self, variants: int) -> Iterator[ApplyProgress]:
        """So many variants are being made."""
        self.began = True
        self._console.print(f"making {numbered(variants, 'variant')}")
        with ApplyProgress() as progress:
            yield progress

    @contextmanager
    def scoring(self, name: str) -> Iterator[ScoringProgress]:
        """A model or variant is being scored."""
        self.began = True
        self._done = min(self._done + 1, self._total)  # what is made again is scored again
        self._console.print(f"[{self._done}/{self._total}] {name}", soft_wrap=True)
        with ProgressBar() as progress:
            yield progress

    def note(self, text: str) -> None:
        """Something that a user should know."""
        self._console.print(f"note: {text}", soft_wrap=True)
