"""The whole of `surgery diff`: match, measure, draw, report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from surgery.analysis.matcher import match
from surgery.analysis.names import short_names
from surgery.checkpoint import open_checkpoint
from surgery.descriptors import reserve_descriptors
from surgery.errors import NotInstalledError
from surgery.manifest import identity, versions
from surgery.unfinished import Places, check_output, settled, writing

if TYPE_CHECKING:
    from surgery.analysis.comparison import Comparison
    from surgery.analysis.matching import Matching
    from surgery.analysis.run import Progress
    from surgery.analysis.store import Store
    from surgery.quantity import Quantity
    from surgery.select import Select

# Beside Python and torch: pandas, pyarrow, matplotlib and a report of some MB, 0.15 GB measured.
LIBRARIES_BYTES = 200_000_000
_NEEDED = ("pandas", "pyarrow", "matplotlib", "jinja2")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use: threads, bytes of resident memory, a torch device, the cache of decompositions."""

    workers: int
    memory: int | None = None
    device: str = "cpu"
    cache: bool = True


def make_matching(
    models: Sequence[str | Path], *, ranks: Sequence[Quantity] = (), select: Select | None = None, quick: bool = False
) -> Matching:
    """Open the models, the base first, and match their matrices. Raises CheckpointError and PlanError."""
    checkpoints = [open_checkpoint(model) for model in models]
    return match(dict(zip(short_names(checkpoints), checkpoints, strict=True)), ranks, select=select, quick=quick)


def compare(matching: Matching, resources: Resources, progress: Progress | None = None) -> Comparison:
    """Measure everything; the spectra are read from a file without a name, which is gone with the last that uses it."""
    _prepare(matching, resources)
    with TemporaryDirectory(prefix="surgery-diff-") as directory:
        places = Places(Path(directory) / "comparison")
        from surgery.analysis.store import Store

        with Store(places, identity(matching.hash, matching.models, resources.device)) as store:
            return _measure(matching, store, resources, progress)


def compare_into(
    out: Path,
    matching: Matching,
    resources: Resources,
    *,
    overwrite: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Measure everything into the directory `out`, with figures and report; see `surgery.diff`."""
    from surgery.analysis import store as stores

    with writing(out):
        places = Places(Path(os.path.abspath(out)))  # noqa: PTH100 - a link at OUT is refused, not followed
    work = json.loads(
        json.dumps({**identity(matching.hash, matching.models, resources.device), "format": stores.FORMAT})
    )
    finished = _is_finished(places.out, work)
    if settled(places, work, lambda: finished) or (finished and not overwrite and not fresh):
        return stores.read(places.out)
    check_output(places, stores.COMPARISON, matching.models, overwrite=overwrite)
    _prepare(matching, resources)
    with stores.Store(places, work, overwrite=overwrite, fresh=fresh) as store:
        found = _measure(matching, store, resources, progress)
        if progress is not None:
            progress.drawing()
        _write(found, store, work)
    return stores.read(places.out)


def _prepare(matching: Matching, resources: Resources) -> None:
    """Find out now what would stop the run later."""
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise NotInstalledError(
            f"comparing needs {', '.join(f'`{package}`' for package in missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed: pip install 'surgery[diff]'",
            name=missing[0],
        )
    if resources.memory is not None:
        matching.check_memory(resources.memory, LIBRARIES_BYTES)
    from surgery.crew import check_device

    check_device(resources.device)
    reserve_descriptors(matching.models.values(), 0)


def _measure(matching: Matching, store: Store, resources: Resources, progress: Progress | None) -> Comparison:
    from surgery.analysis.run import measure_all
    from surgery.decompositions import open_decompositions

    decomposer = open_decompositions(resources.cache, exact=False, expected=matching.kept_bytes)
    found = measure_all(
        matching,
        store,
        workers=resources.workers,
        memory=None if resources.memory is None else resources.memory - LIBRARIES_BYTES,
        device=resources.device,
        decomposer=decomposer,
        progress=progress,
    )
    if decomposer.problem and progress is not None:
        progress.note(decomposer.problem)
    return found


def _write(found: Comparison, store: Store, work: Mapping[str, object]) -> None:
    """Tables, figures, report and summary, and then the output gets its name."""
    from surgery.analysis.advice import advise
    from surgery.analysis.figures import draw
    from surgery.analysis.report import make_report
    from surgery.analysis.store import FIGURES, REPORT
    from surgery.analysis.summary import summary

    store.write_tables(found)
    drawn = draw(found, store.make(FIGURES))
    advice = advise(found)
    with writing(store.directory):
        figures = {path.stem: path.read_bytes() for path in drawn if path.suffix == ".png"}
    store.write(REPORT, make_report(found, advice, figures, versions()))
    store.publish({"format": work["format"], **summary(found), "identity": work})


def _is_finished(out: Path, work: Mapping[str, object]) -> bool:
    """Whether `out` is the whole output of this very work."""
    from surgery.analysis.store import is_whole, summary_of

    summary = summary_of(out)
    return summary is not None and summary.get("identity") == work and is_whole(out)
