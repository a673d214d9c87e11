"""What a person sees of a pipeline: progress on stderr, plans and results on stdout. Only the command line uses it."""

from __future__ import annotations

from threading import Lock
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from surgery.console import make_console, make_table
from surgery.size import show_size
from trainers.reproduce.api import Outcome
from trainers.reproduce.wording import counted_stages, duration

if TYPE_CHECKING:
    from trainers.reproduce.dry_run import DryRun, Foreseen

BAR = 24  # characters of the bar
SHOWN_PLANS = 6  # lines of single edits under a stage; the rest is counted


class PipelineProgress:
    """How far a pipeline is: on a terminal a line of its own and one for each stage at work; elsewhere all lines."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._lock = Lock()
        self._total = self._begun = self._done = 0
        self._began = monotonic()
        self._lines: dict[str, str] = {}  # what the stages at work said last
        self._live = Live(console=self._console, transient=True, refresh_per_second=4, get_renderable=self._shown)

    def begin(self, total: int, done: int) -> None:
        """The run begins."""
        self._total, self._begun, self._done = total, done, done
        self._began = monotonic()
        known = f", {done} of them done earlier" if done else ""
        self._print(f"{counted_stages(total)}{known}")

    def stage(self, seed: int, name: str, title: str, command: str) -> None:
        """A stage begins."""
        self._begun += 1
        self._print(f"stage {min(self._begun, self._total)} of {self._total}  seed {seed}  {name}: {title}")
        if command:
            self._print(f"  {command}", "dim")
            with self._lock:
                self._lines[name] = ""

    def said(self, name: str, line: str) -> None:
        """The command of a stage said this."""
        with self._lock:
            if name in self._lines:  # what it has started may speak on when it has ended
                self._lines[name] = line
        if not self._console.is_terminal:
            self._print(f"  {name}: {line}")

    def ended(self, name: str, state: str, seconds: float, message: str) -> None:
        """A stage has ended."""
        self._done += 1
        with self._lock:
            self._lines.pop(name, None)
        if state == "finished":
            self._print(f"  {name}: done in {duration(seconds)}, {duration(monotonic() - self._began)} since the start")
            return
        told = f"  {name}: {state}: {message}" if message else f"  {name}: {state}"
        self._print("\n  ".join(told.splitlines()), "bold" if state == "failed" else "")

    def note(self, text: str) -> None:
        """Something that a user should know."""
        self._print(f"note: {text}")

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)

    def _shown(self) -> Group:
        """The lines; the bar is of stages."""
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Bar(total=max(self._total, 1), completed=self._done, width=BAR),
            Text(f"{self._done}/{self._total}"),
            Text(duration(monotonic() - self._began)),
        )
        with self._lock:
            said = dict(self._lines)
        return Group(
            line, *(Text(f"  {name}: {text}", "dim", overflow="ellipsis", no_wrap=True) for name, text in said.items())
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def print_outcome(outcome: Outcome, again: str) -> None:
    """Where the report is, and what is not finished."""
    console = make_console()
    finished = sum(each.state == "finished" for each in outcome.stages)
    are = "are" if len(outcome.stages) != 1 else "is"
    console.print(f"{finished} of {counted_stages(len(outcome.stages))} {are} finished", soft_wrap=True)
    for each in outcome.stages:
        if each.state in ("failed", "interrupted"):
            message = each.message.splitlines() or [each.state]
            console.print(f"seed {each.seed}, {each.stage.name}: {message[0]}", soft_wrap=True)
            for line in message[1:]:
                console.print(f"    {line}", soft_wrap=True)
    if finished < len(outcome.stages) and not outcome.failed:
        console.print(f"to go on: {again}", soft_wrap=True)
    console.print(f"{outcome.report}", soft_wrap=True)


def print_dry_run(planned: DryRun) -> None:
    """Every stage: its command, what it reads and makes, what it takes; and whether it fits here."""
    console = make_console()
    console.print(Text.assemble((planned.pipeline.name, "bold"), f"  {planned.pipeline.summary}"), soft_wrap=True)
    for number, stage in enumerate(planned.stages, 1):
        _print_stage(console, number, stage)
    console.print()
    each = f", {planned.seeds} seeds" if planned.seeds > 1 else ""
    devices = f", {planned.devices} GPUs with {show_size(planned.device)} each" if planned.devices else ""
    console.print(
        f"in all{each}: {show_size(planned.disk)} of disk, {show_size(planned.host)} of memory{devices}", soft_wrap=True
    )
    room = planned.room
    here = f", {len(room.devices)} GPUs" if room.devices else ", no GPU"
    console.print(f"this machine: {show_size(room.disk)} free, {show_size(room.memory)} of memory{here}")
    for text in planned.shortages:
        console.print(f"does not fit here: {text}", soft_wrap=True)
    if not planned.shortages:
        console.print("it fits here")
    console.print(planned.formula)


def _print_stage(console: Console, number: int, stage: Foreseen) -> None:
    cost = stage.cost
    console.print()
    console.print(Text.assemble(f"{number}  ", (stage.name, "bold"), f"  {stage.title}"), soft_wrap=True)
    console.print(f"   {stage.command}", soft_wrap=True)
    reads = f"reads {', '.join(stage.models)}; " if stage.models else ""
    after = f"after {', '.join(stage.needs)}; " if stage.needs else ""
    console.print(f"   {after}{reads}makes {stage.makes}", soft_wrap=True)
    parts = [f"memory {show_size(cost.host)}"]
    if cost.device is not None:
        several = f"{cost.devices} GPUs with {show_size(cost.device)} each"
        parts.append(several if cost.devices > 1 else f"a GPU with {show_size(cost.device)}")
    parts.append(f"disk {show_size(cost.disk)}, meanwhile {show_size(cost.peak_disk)}")
    if cost.flops:
        parts.append(f"reads {show_size(cost.reads)}, writes {show_size(cost.writes)}, {cost.flops / 1e9:,.0f} GFLOP")
    console.print(f"   {'; '.join(parts)}", soft_wrap=True)
    if len(cost.plans) > 1:
        console.print(_plans(stage))


def _plans(stage: Foreseen) -> Table:
    table = make_table("   variant", "read", "write", "memory", "GFLOP", right=["read", "write", "memory", "GFLOP"])
    for plan in stage.cost.plans[:SHOWN_PLANS]:
        sizes = [show_size(plan[name]) for name in ("reads", "writes", "memory")]
        table.add_row(f"   {plan['name']}", *sizes, f"{plan['flops'] / 1e9:,.0f}")
    if len(stage.cost.plans) > SHOWN_PLANS:
        table.add_row(f"   and {len(stage.cost.plans) - SHOWN_PLANS} more (--json)")
    return table
