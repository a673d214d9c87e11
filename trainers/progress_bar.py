"""Progress of a training run on stderr. Only the command line uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from rich.progress import ProgressColumn, TimeElapsedColumn, TimeRemainingColumn

from evalkit.progress_bar import Line

NAME, NARROW_NAME = 24, 12  # characters of a phase's name beside the bar, and without a bar
BAR = 10  # characters of the bar
CLOCK = 7  # characters of a time: 0:12:31
FIGURES = 3  # that are shown
DIGITS = 3  # of a figure


class TrainingBar(Line):
    """How far a run is: `trainers.progress.Progress`, as a context manager."""

    def __init__(self) -> None:
        super().__init__(BAR)
        self._short = ""
        self._total, self._done = 0, 0

    def _columns(self, text: ProgressColumn, wide: bool) -> Sequence[ProgressColumn]:
        times = [TimeElapsedColumn(), TimeRemainingColumn()]
        return [*times, text] if wide else times

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """A phase begins: so many steps in all, so many of them done earlier."""
        self._total, self._done = total, done
        self._short = _last_words(name, NAME if self._wide else NARROW_NAME)
        self._begin(name, self._short, total, done)
        known = f", {done:,} of them done earlier" if done else ""
        self._tell(f"{total:,} steps{known}")

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step is done; the first three of `metrics` are shown, beside the bar as many as it has room for."""
        self._done += 1
        figures = [_figure(name, value) for name, value in [*metrics.items()][:FIGURES]]
        self._bar.update(self._work, completed=self._done, text=_fitting(figures, self._room()))
        if self._due():
            self._tell(", ".join([f"{self._done:,} of {self._total:,}", *self._times(), *figures]))

    def _times(self) -> list[str]:
        """Since the phase began, and, once it can be told, until its end."""
        (task,) = self._bar.tasks
        times = [("", task.elapsed), (" left", task.time_remaining)]
        return [f"{timedelta(seconds=int(time))}{word}" for word, time in times if time is not None]

    def _room(self) -> int:
        """The characters that figures may take on a wide terminal's line."""
        counts = 2 * len(str(self._total)) + 1
        return self._console.width - (len(self._short) + BAR + counts + 2 * CLOCK + 5)


def _last_words(name: str, room: int) -> str:
    """The end of a name, which tells phases apart, from a word's beginning where there is one."""
    if len(name) <= room:
        return name
    tail = name[1 - room :]
    return f"…{tail.split(' ', 1)[1] if ' ' in tail else tail}"


def _figure(name: str, value: float) -> str:
    """`loss 0.412`, `learning_rate 9.8e-07`."""
    return f"{name} {value:.{DIGITS}g}"


def _fitting(figures: Sequence[str], room: int) -> str:
    """The first of the figures, as many as there is room for."""
    line = ""
    for figure in figures:
        longer = f"{line}  {figure}" if line else figure
        if len(longer) > room:
            break
        line = longer
    return line
