"""Progress of an evaluation on stderr. Only the command line uses it."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from evalkit.console import NARROW
from evalkit.figures import tail_of
from surgery.console import PLAIN_SECONDS

NAME = 16  # characters of a model's name beside the bar
BAR = 16  # characters of the bar
SPEED_SECONDS = 3600  # back from now, that the time left is estimated from: a single step may take minutes


class Line:
    """One piece of work after another on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, bar: int = BAR) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._wide = wide = self._console.width >= NARROW
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            *([BarColumn(bar_width=bar)] if wide else []),
            MofNCompleteColumn(),
            *self._columns(TextColumn("{task.fields[text]}", markup=False), wide),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            get_time=lambda: monotonic(),
            speed_estimate_period=SPEED_SECONDS,
        )
        self._work = self._bar.add_task("", total=None, visible=False, text="")
        self._name = ""
        self._told = monotonic()

    def _columns(self, text: ProgressColumn, wide: bool) -> Sequence[ProgressColumn]:
        """What stands right of the counts; `text` is what the work was last updated with, `wide` the terminal's."""
        return [*([text] if wide else []), TimeElapsedColumn()]

    def note(self, text: str) -> None:
        """Something that a user should know."""
        self._console.print(f"note: {text}", soft_wrap=not self._console.is_terminal)

    def _begin(self, name: str, short: str, total: int, done: int) -> None:
        """Work of that name, `short` beside the bar, begins: so many steps in all, so many done earlier."""
        self._name = name
        self._bar.reset(self._work, total=total, completed=done, visible=True, description=short, text="")

    def _due(self) -> bool:
        """Whether it is time for another line."""
        return monotonic() >= self._told + PLAIN_SECONDS

    def _tell(self, text: str) -> None:
        """A line about the work, unless a bar shows it."""
        self._told = monotonic()
        if not self._console.is_terminal:
            self._console.print(f"{self._name}: {text}", soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class ProgressBar(Line):
    """How far an evaluation is."""

    def __init__(self) -> None:
        super().__init__()
        self._total, self._done, self._tokens = 0, 0, 0
        self._began = monotonic()
        self.began = False  # whether anything has been asked

    def model(self, name: str, total: int, reused: int) -> None:
        """A model's turn: so many episodes and losses in all, so many of them known from an earlier run."""
        self._total, self._done, self._tokens = total, reused, 0
        self._began = monotonic()
        self._begin(name, tail_of(name, NAME), total, reused)
        known = f", {reused:,} known from an earlier run" if reused else ""
        self._tell(f"{total - reused:,} of {total:,} to do{known}")

    def turn(self, number: int, live: int) -> None:
        """Turn `number`, from 1, begins with so many live episodes."""
        self.began = True
        if number == 1:
            self._began = monotonic()  # the checkpoint is loaded
        self._bar.update(self._work, description=f"{tail_of(self._name, NAME)} turn {number}")
        self._tell(f"turn {number}, {live:,} episodes")

    def answered(self, tokens: int) -> None:
        """An answer of so many tokens was generated or scored."""
        self._tokens += tokens
        self._show()

    def finished(self) -> None:
        """An episode or a loss is done."""
        self._done += 1
        self._show()

    def _show(self) -> None:
        rate = f"{self._tokens / max(monotonic() - self._began, 1e-3):,.0f} tokens/s"
        self._bar.update(self._work, completed=self._done, text=rate)
        if self._due():
            self._tell(f"{self._done:,} of {self._total:,}, {rate}")
