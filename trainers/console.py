"""What a person sees of a run: its checkpoints on stdout, and what to do with them. Only the command line uses it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evalkit.console import GAP
from evalkit.figures import number, share_in
from evalkit.stats import CONFIDENCE
from surgery.console import make_console, make_table
from trainers.directory import FINAL, INTER_SFT, LOG, REPORT
from trainers.plots import FORMATS, LOSSES, UPDATES
from trainers.report import OOD, CheckpointRow, Report

BEST = "best OOD"  # the mark where there is no link
GONE = "not kept"
STEP = "step"
_TITLES = {"sft": "supervised fine-tuning", "ppo": "PPO", "grpo": "GRPO"}


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    cells: Sequence[str]
    breaks: str = " ["  # where a cell may go on below

    @property
    def width(self) -> int:
        return max(cell_len(line) for text in (self.heading, *self.cells) for line in text.split("\n"))

    def broken(self) -> _Column:
        """The same, intervals below their values, one mark below the other."""
        below = "\n" + self.breaks.strip(" ,")
        return _Column(self.heading.replace(" ", "\n", 1), [cell.replace(self.breaks, below) for cell in self.cells])


def print_report(report: Report) -> None:
    """All checkpoints with what was measured there, where everything lies, and what one would type next."""
    console = make_console()
    kind = "steps" if report.trainer == "sft" else "updates"
    console.print(
        Text.assemble((_TITLES[report.trainer], "bold"), f"  {report.model}, {report.steps:,} {kind}"), soft_wrap=True
    )
    console.print()
    _print_checkpoints(console, report)
    if report.note:
        console.print(f"note: {report.note}")
    console.print()
    for line in _next(report):
        console.print(line, soft_wrap=True)  # what is to be typed must come out of a terminal in one piece


def _print_checkpoints(console: Console, report: Report) -> None:
    """One table, or several with the same steps where it would be too wide."""
    rows = report.checkpoints
    steps = _Column(STEP if report.trainer == "sft" else "update", [f"{row.step:,}" for row in rows])
    marks = _Column("", [_marks(report, row) for row in rows], ", ")
    scores = [*_scores(report)]
    columns = [*_plain(rows), *scores]
    if _width([steps, *columns, marks]) > console.width:
        marks, columns = marks.broken(), [column.broken() for column in columns]
    blocks: list[list[_Column]] = [[]]
    for column in columns:
        if blocks[-1] and _width([steps, *blocks[-1], column, marks]) > console.width:
            blocks.append([])
        blocks[-1].append(column)
    for i, block in enumerate(blocks):
        if i:
            console.print()
        console.print(_table(report, [steps, *block, marks]))
    if scores:
        console.print(Text(f"[ ] {100 * CONFIDENCE:.0f} % interval", "dim"))


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.width + GAP for column in columns) - GAP


def _table(report: Report, columns: Sequence[_Column]) -> Table:
    """The best checkpoint stands out, and those that are gone stand back."""
    headings = [column.heading for column in columns]
    table = make_table(*headings, right=[*filter(None, headings)])
    for i, row in enumerate(report.checkpoints):
        style = "bold" if row.step == report.best else "" if row.kept else "dim"
        table.add_row(*(column.cells[i] for column in columns), style=style)
    return table


def _plain(rows: Sequence[CheckpointRow]) -> Iterator[_Column]:
    """Losses in nats a token, and the reward; what no checkpoint has is left out."""
    if any(row.loss is not None for row in rows):
        yield _Column("train\nloss", [_number(row.loss, 3) for row in rows])
    for part in dict.fromkeys(part for row in rows for part in row.losses):
        yield _Column(f"{_name(part)}\nloss", [_number(row.losses.get(part), 3) for row in rows])
    if any(row.reward is not None for row in rows):
        yield _Column("mean\nreward", [_number(row.reward, 2) for row in rows])


def _scores(report: Report) -> Iterator[_Column]:
    """The share of problems solved, a column for each split."""
    rows = report.checkpoints
    what = "accuracy" if report.trainer == "sft" else "success"
    for split in dict.fromkeys(split for row in rows for split in row.scores):
        own = [row.scores.get(split) for row in rows]
        sizes = {score.n for score in own if score is not None}
        size = f"\nn = {sizes.pop():,}" if len(sizes) == 1 else ""
        cells = ["-" if score is None else share_in(score) for score in own]
        yield _Column(f"{_name(split)} {what}, %{size}", cells)


def _marks(report: Report, row: CheckpointRow) -> str:
    best = INTER_SFT if report.trainer == "sft" else BEST
    marks = [best] * (row.step == report.best) + [FINAL] * (row is report.checkpoints[-1]) + [GONE] * (not row.kept)
    return ", ".join(marks)


def _next(report: Report) -> Iterator[str]:
    """Where things are, how the checkpoints are scored, and how they are edited."""
    figures = LOSSES if report.trainer == "sft" else UPDATES
    files = ", ".join([*(f"{figures}.{kind}" for kind in FORMATS), LOG, REPORT])
    yield f"{report.out}: {files}"
    best = _best(report)
    final, model, edited = f"{report.out}/{FINAL}", report.model, f"{report.out}-edited"
    yield _command("surgery", "eval", report.task or "TASK", model, *([best] if best else []), final)
    if report.trainer == "sft":
        yield _command("surgery", "apply", "restore-top-20pct", best or model, final, edited)
    else:
        yield _command("surgery", "apply", "rl-with-sft-directions", model, final, edited)


def _best(report: Report) -> str | None:
    """The path of the best checkpoint, where it is not the final one."""
    if report.best is None or report.best == report.checkpoints[-1].step:
        return None
    if report.trainer == "sft":
        return f"{report.out}/{INTER_SFT}"
    return next(row.path for row in report.checkpoints if row.step == report.best)


def _command(*words: str) -> str:
    return shlex.join(words)


def _name(split: str) -> str:
    return split.upper() if split in ("id", OOD) else split


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else number(value, digits)
