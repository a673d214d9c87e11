"""Makes the checkpoints of candidates: each batch in one pass over the tensors, the next one while one is scored."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence

from evalkit.sweeps.bound import Work
from evalkit.sweeps.checkpoints import Checkpoints
from evalkit.sweeps.maker import Batch, Maker, Making, make
from evalkit.sweeps.progress import Progress
from evalkit.sweeps.spec import Keep
from surgery.api import Model
from surgery.errors import NumericalError, OutputError
from surgery.size import show_size
from surgery.unfinished import writing

DISK_PART = 0.5  # of what is free, for variants that are not yet known to stay


class Room:
    """The disk for variants that may still go: `making.disk`, or half of what is free, or as much as it takes at least.

    Never more than is free. With `keep` as `best` the best so far takes a part of it; what stays for good is outside.
    Raises OutputError where the largest of `works` does not fit, and where all of them are to stay and do not.
    """

    def __init__(self, works: Sequence[Work], checkpoints: Checkpoints, keep: Keep, making: Making) -> None:
        root = checkpoints.root
        largest = max(work.nbytes for work in works)
        with writing(root):
            free = shutil.disk_usage(root).free + checkpoints.taken(works)
        if keep == "all" and _size(works) > free:
            raise OutputError(
                f"all variants that are to be made take {show_size(_size(works))}, and the disk of `{root}` has "
                f"{show_size(free)} left; keep fewer (`--keep best`), or choose an `--out` with more"
            )
        reserve = largest if keep == "best" else 0
        least = min(free, largest + reserve)
        limit = max(int(free * DISK_PART), least) if making.disk is None else min(making.disk, free)
        self._nbytes = limit - reserve
        if largest > self._nbytes:
            beside = " beside the best so far" if keep == "best" else ""
            raise OutputError(
                f"a variant takes {show_size(largest)}{beside}, and {show_size(limit)} of the disk of `{root}` may be "
                "taken; make room, choose another `--out`, or raise `--disk`"
            )

    def divide(self, works: Sequence[Work]) -> list[list[Work]]:
        """All in one batch if they fit; otherwise as many in each as leave room for the next one, if any does."""
        if self.holds(works):
            return [list(works)] if works else []
        share = max(self._nbytes // 2, *(work.nbytes for work in works))
        found: list[list[Work]] = [[]]
        for work in works:
            if _size(found[-1]) + work.nbytes > share:
                found.append([])
            found[-1].append(work)
        return found

    def holds(self, works: Sequence[Work]) -> bool:
        """Whether there is room for all of these at a time."""
        return _size(works) <= self._nbytes


class Production:
    """Makes batches. `works` are all of the sweep: decompositions serve all of them, whatever the batches.

    Where the numbers of one do not allow it, the others of its batch are made all the same; `fail` is told of it.
    """

    def __init__(
        self, works: Sequence[Work], models: Mapping[str, Model], checkpoints: Checkpoints, making: Making,
        progress: Progress, fail: Callable[[Work, str], None],
    ) -> None:  # fmt: skip
        self._works = works
        self._models = models
        self._root = checkpoints.root
        self._making = making
        self._progress = progress
        self._fail = fail

    def produce(self, batches: Sequence[Sequence[Work]], room: Room) -> Generator[Sequence[Work]]:
        """Yield each batch once its checkpoints lie there; if there is room the next one is being made meanwhile.

        To be closed, which ends what is being made. Raises any SurgeryError.
        """
        ahead: Maker | None = None
        try:
            for i, batch in enumerate(batches):
                made = self._made(batch, ahead)
                if ahead is not None:
                    ahead.close()
                    ahead = None
                following = batches[i + 1] if i + 1 < len(batches) else None
                if following is not None and room.holds([*made, *following]):
                    ahead = Maker(self._batch(following), self._models, self._making)
                yield made
        finally:
            if ahead is not None:
                ahead.close()

    def _made(self, batch: Sequence[Work], ahead: Maker | None = None) -> Sequence[Work]:
        """Those of a batch that could be made, here or by a maker that has begun with it."""
        try:
            with self._progress.making(len(batch)) as telling:
                if ahead is None:
                    make(self._batch(batch), self._models, self._making, telling)
                else:
                    ahead.wait()
        except NumericalError as error:
            if len(batch) > 1:
                return [work for each in batch for work in self._made([each])]
            self._fail(batch[0], str(error))
            return []
        return batch

    def _batch(self, works: Sequence[Work]) -> Batch:
        names = {work.name for work in works}
        beside = [work for work in self._works if work.name not in names]
        return Batch(*([work.variant(self._root) for work in some] for some in (works, beside)))


def _size(works: Sequence[Work]) -> int:
    return sum(work.nbytes for work in works)
