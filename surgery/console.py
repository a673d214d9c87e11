"""What a person sees: tables on stdout, progress on stderr. Only the command line uses it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from surgery.api import Applied
from surgery.checkpoint import Checkpoint
from surgery.header import shown
from surgery.inventory import ModuleRow, inventory
from surgery.plan import Action, Plan, TensorPlan
from surgery.size import show_size
from surgery.verification import Verified

FLOPS_PER_BYTE = 100  # the work of moving one byte, in floating-point operations, for the progress bar only
PIPE_WIDTH = 2000
PLAIN_SECONDS = 5  # between two lines when stderr is no terminal


def make_table(*columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table in the style of all of ours."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def make_console() -> Console:
    """What results are printed with, on stdout."""
    # Names and paths are not ours: no markup in them is obeyed. A pipe has no width: nothing is folded there.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_plan(plan: Plan, workers: int) -> None:
    """What would change, and what it costs."""
    console = make_console()
    recipe = plan.recipe
    console.print(Text.assemble((recipe.name, "bold"), f"  {recipe.summary}".rstrip()))
    inputs = make_table("role", "model", "tensors", right=["tensors"])
    for role, checkpoint in plan.inputs.items():
        mark = f"{role} (start)" if role == recipe.start else role
        inputs.add_row(mark, checkpoint.source, f"{len(checkpoint.tensors):,}")
    console.print(inputs)
    console.print()
    if plan.layers:
        layers = make_table("layers", "of")
        for row in plan.layers:
            layers.add_row(*row)
        console.print(layers)
        console.print()
    work = make_table("tensors", "what is done", "read", "write", "GFLOP", right=["tensors", "read", "write", "GFLOP"])
    for what, tensors in _by_work(plan).items():
        work.add_row(
            f"{len(tensors):,}",
            what,
            show_size(sum(tensor.bytes_read for tensor in tensors)),
            show_size(sum(tensor.slot.nbytes for tensor in tensors)),
            f"{sum(map(plan.flops, tensors)) / 1e9:,.0f}",
        )
    console.print(work)
    console.print()
    for remark in plan.remarks:
        console.print(f"note: {remark}")
    files = f"{len(plan.files)} file{'s' if len(plan.files) > 1 else ''}"
    console.print(
        f"reads {show_size(plan.bytes_read)}, writes {show_size(plan.bytes_written)} in {files}; at most "
        f"{show_size(plan.peak_memory(workers))} of memory with {workers} workers; plan {plan.hash[:12]}"
    )


def _by_work(plan: Plan) -> dict[str, list[TensorPlan]]:
    """Tensors that are treated alike, in the order in which the first of each kind appears."""
    groups: dict[str, list[TensorPlan]] = {}
    for tensor in plan.tensors:
        roles = ", ".join(dict.fromkeys(source.role for source in tensor.all_inputs))
        steps = ", then ".join(f"steps[{i}] {plan.recipe.steps[i].op}" for i in tensor.steps)
        groups.setdefault(f"{steps or tensor.action} of {roles}", []).append(tensor)
    return groups


def print_applied(applied: Applied) -> None:
    """What was done, and where it lies."""
    actions = Counter(tensor.action for tensor in applied.plan.tensors)
    words: dict[Action, str] = {
        "compute": "computed", "adapt": "adapted", "cast": "cast", "gather": "gathered", "copy": "copied",
    }  # fmt: skip
    done = ", ".join(f"{actions[action]:,} {word}" for action, word in words.items() if actions[action])
    resumed = f"; {applied.resumed:,} were there from an interrupted run" if applied.resumed else ""
    size = show_size(applied.plan.bytes_written)
    make_console().print(f"{applied.out}: {len(applied.plan.tensors):,} tensors, {size}: {done}{resumed}")


def print_verified(out: str, verified: Verified) -> None:
    """That an output is what its manifest says."""
    make_console().print(
        f"{out}: {verified.tensors:,} tensors and {verified.files} files are as the manifest says "
        f"({show_size(verified.nbytes)})",
        markup=False,
    )


def print_inspected(checkpoint: Checkpoint) -> None:
    """Stacks, groups, shapes, dtypes and sizes of a checkpoint."""
    console = make_console()
    anatomy = checkpoint.anatomy
    rows = inventory(checkpoint)
    parameters = sum(row.parameters for row in rows)
    console.print(
        f"{checkpoint.source}: {len(checkpoint.tensors):,} tensors, {parameters:,} parameters, "
        f"{show_size(sum(row.nbytes for row in rows))} in {len(checkpoint.shards)} "
        f"file{'s' if len(checkpoint.shards) > 1 else ''}",
        markup=False,
    )
    for stack in anatomy.stacks.values():
        name = "text decoder" if stack == anatomy.decoder else "stack"
        console.print(f"{name}: {stack.prefix}, {stack.layers} layers")
    if checkpoint.tied:
        console.print(f"output head: tied to {anatomy.embedding}")
    for adapter in checkpoint.adapters:
        console.print(f"adapter: {adapter}")
    for note in checkpoint.notes:
        console.print(f"note: {note}")
    console.print()
    table = make_table("tensors", "group", "shape", "dtype", "count", "size", right=["count", "size"])
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)


def _cells(row: ModuleRow) -> tuple[str, ...]:
    shape = " x ".join(map(str, row.shape)) or "scalar"
    return shown(row.pattern), row.group or "-", shape, row.dtype, f"{row.count:,}", show_size(row.nbytes)


class WorkProgress:
    """Progress on stderr of work whose parts cost more and less: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, verb: str, parts: str) -> None:
        self._verb, self._parts = verb, parts
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._work = self._bar.add_task(verb, total=None)
        self._cost = self._spent = self._count = self._done = 0
        self._told = monotonic()

    def _begin(self, cost: int, count: int) -> None:
        """The work starts: what it costs in all, in any unit, and how many parts it has."""
        self._cost, self._count = max(cost, 1), count
        self._bar.update(self._work, total=count)

    def _advance(self, cost: int) -> None:
        """A part of that cost is done."""
        self._done += 1
        self._spent += cost
        percent = 100 * self._spent // self._cost
        self._say(f"{self._verb} {percent:3} %", advance=1)
        if not self._console.is_terminal and monotonic() >= self._told + PLAIN_SECONDS:
            self._told = monotonic()
            self._console.print(f"{self._verb}: {percent} %, {self._done:,} of {self._count:,} {self._parts}")

    def _say(self, text: str, advance: int = 0) -> None:
        """What stands beside the bar."""
        self._bar.update(self._work, advance=advance, description=text)

    def stopping(self) -> None:
        """The run was interrupted."""
        self._console.print("stopping after the matrices at hand; Ctrl-C again leaves at once")

    def note(self, text: str) -> None:
        """Something that a user should know."""
        self._console.print(f"note: {text}", markup=False, soft_wrap=not self._console.is_terminal)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class ApplyProgress(WorkProgress):
    """Progress of `apply`, and of several outputs that are made together."""

    def __init__(self) -> None:
        super().__init__("apply", "tensors")
        self._costs: dict[int, int] = {}  # by identity: equal tensor plans of two recipes cost differently

    def begin(self, plan: Plan) -> None:
        """The run starts; called for each output."""
        self._costs |= {id(tensor): plan.flops(tensor) + FLOPS_PER_BYTE * tensor.slot.nbytes for tensor in plan.tensors}
        self._begin(sum(self._costs.values()), len(self._costs))

    def finished(self, tensor: TensorPlan, resumed: bool) -> None:  # noqa: ARG002 - the protocol's
        """A tensor is in place."""
        self._advance(self._costs[id(tensor)])
