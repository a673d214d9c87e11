"""Makes outputs from their plans: checks all of them, has their tensors made in one pass, gives them their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.card import CARD_FILE, make_card
from surgery.descriptors import reserve_descriptors
from surgery.errors import OutputError
from surgery.jobs import Batch
from surgery.manifest import identity, is_current, is_made_by, make_manifest
from surgery.unfinished import OTHERS, Places, check_output, settled, writing
from surgery.writer import CHECKPOINT, Writer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from surgery.executor import Executed, Progress
    from surgery.plan import Plan


@dataclass(frozen=True, slots=True)
class Options:
    """How outputs are made: arguments of `surgery.apply`, and `keep`: finished ones are left, not refused."""

    workers: int
    memory: int | None
    device: str
    cache: bool
    overwrite: bool
    fresh: bool
    durable: bool
    keep: bool


def make_outputs(
    plans: Sequence[Plan], outs: Sequence[Path], options: Options, progress: Progress | None = None
) -> list[int]:
    """Make the output of each plan; returns for each how many of its tensors were there already.

    Plans beyond the last of `outs` are not made; they decide over the sizes of decompositions only. Nothing is written
    before all of them have been checked. If one cannot be made, none appears, and what is finished of each is kept.
    """
    batch = Batch(plans)
    works = [_Work(out, batch, i, options) for i, out in enumerate(outs)]
    _refuse_overlaps(works)
    resumed = [len(work.plan.tensors) for work in works]
    missing = {i: work for i, work in enumerate(works) if not work.is_finished()}
    if missing:
        for work in missing.values():
            work.check_output()
        for i, done in _make(batch, missing, options, progress).items():
            resumed[i] = done.resumed
    return resumed


class _Work:
    """What is done for one of the outputs."""

    def __init__(self, out: Path, batch: Batch, number: int, options: Options) -> None:
        with writing(out):
            self.places = Places(Path(os.path.abspath(out)))  # noqa: PTH100 - a link at OUT is refused, not followed
            self.targets = [Path(os.path.realpath(path)) for path in self.places.all]
        self.plan = batch.plans[number]
        self._inputs = {role: model for plan in batch.plans for role, model in plan.inputs.items()}
        self._identity = identity(self.plan.hash, self.plan.inputs, options.device)
        others = batch.others(number)
        if others:
            self._identity[OTHERS] = others
        self._options = options

    def is_finished(self) -> bool:
        """Whether an earlier run has made it, or only what it left remains to be cleaned up."""
        out = self.places.out
        if settled(self.places, self._identity, lambda: is_made_by(out, self.plan.hash)):
            return True
        with writing(out):
            return self._options.keep and not self._options.fresh and is_current(out, self.plan)

    def check_output(self) -> None:
        """Refuse an OUT that may not be written, or that touches an input of any of the outputs."""
        check_output(self.places, CHECKPOINT, self._inputs, overwrite=self._options.overwrite)

    def open(self) -> Writer:
        """Claim the output."""
        overwrite, fresh, durable = self._options.overwrite, self._options.fresh, self._options.durable
        return Writer(self.places, self.plan, self._identity, overwrite=overwrite, fresh=fresh, durable=durable)

    def publish(self, writer: Writer, digests: Mapping[str, str]) -> None:
        """Add the files beside the weights, and give the output its name."""
        plan = self.plan
        files = {companion.name: companion.read() for companion in plan.companions}
        if plan.index is not None:
            files[plan.index_name] = plan.index
        writer.commit({**files, CARD_FILE: make_card(plan)}, make_manifest(plan, digests, files).dump())


def _make(
    batch: Batch, works: Mapping[int, _Work], options: Options, progress: Progress | None
) -> Mapping[int, Executed]:
    """Make and publish those of the outputs."""
    if options.memory is not None:
        batch.check_memory(options.memory)
    from surgery.crew import check_device  # torch: after what can be refused without it
    from surgery.decompositions import open_decompositions
    from surgery.executor import execute

    check_device(options.device)
    reserve_descriptors(batch.models, sum(len(work.plan.files) + 1 for work in works.values()))  # 1: the journal
    decomposer = open_decompositions(options.cache)
    with ExitStack() as stack:
        writers = {i: stack.enter_context(work.open()) for i, work in works.items()}
        done = execute(
            batch,
            writers,
            workers=options.workers,
            memory=options.memory,
            device=options.device,
            decomposer=decomposer,
            progress=progress,
        )
        if decomposer.problem and progress is not None:
            progress.note(decomposer.problem)
        for i, work in works.items():
            work.publish(writers[i], done[i].digests)
    return done


def _refuse_overlaps(works: Sequence[_Work]) -> None:
    """Refuse outputs of which one is, contains or lies in another, or in what is made beside that on the way."""
    for one, other in combinations(works, 2):
        for first, second in product(one.targets, other.targets):
            if first == second or first in second.parents or second in first.parents:
                raise OutputError(
                    f"the outputs `{one.places.out}` and `{other.places.out}` are in each other's way (`{first}`, "
                    f"`{second}`); choose a directory of its own for each"
                )
