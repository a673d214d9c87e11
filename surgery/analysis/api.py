"""`surgery.diff`: arguments in, a comparison out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.workers import chosen_workers

# torch, pydantic and the rest are imported when the verb is called: `import surgery` stays quick.
if TYPE_CHECKING:
    from surgery.analysis.comparison import Comparison
    from surgery.analysis.run import Progress
    from surgery.api import Model


def diff(
    base: Model,
    tuned: Model,
    third: Model | None = None,
    out: str | Path | None = None,
    *,
    ranks: int | str | Sequence[int | str] = (),
    layers: str | None = None,
    tensors: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    quick: bool = False,
    workers: int | None = None,
    memory: int | None = None,
    device: str = "cpu",
    cache: bool = True,
    overwrite: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two or three checkpoints spectrally, matrix by matrix; `third` may be an RL checkpoint on top of `tuned`.

    The result has data frames, `matrices`, `gauge` and `embeddings`, and the spectra. With `out` it is also written
    there, with figures and `report.html`; run again after an interruption it goes on where it was, and a finished
    comparison is only read.

    ranks: of the leading subspaces that are compared, such as `768` or `20%`, the main one first. layers, tensors,
    exclude: as in a recipe's `select`; default: every matrix. quick: only the leading triplets of the largest rank.
    workers, memory, device, cache, overwrite, fresh: as for `apply`. Needs `surgery[diff]`. Raises any SurgeryError,
    ValueError for ranks or layers that cannot be read.
    """
    from surgery.analysis.diff import Resources, compare, compare_into, make_matching
    from surgery.quantity import Quantity
    from surgery.select import selecting

    select = selecting(layers, tensors, exclude)
    asked = [Quantity.parse(rank) for rank in ([ranks] if isinstance(ranks, int | str) else ranks)]
    if any(rank.of(1) == 0 for rank in asked):
        raise ValueError(f"found `ranks={ranks}`; expected at least 1 direction for each")
    models = [base, tuned] if third is None else [base, tuned, third]
    matching = make_matching(models, ranks=asked, select=select, quick=quick)
    resources = Resources(chosen_workers(workers), memory, device, cache)
    if out is None:
        return compare(matching, resources, progress)
    return compare_into(Path(out), matching, resources, overwrite=overwrite, fresh=fresh, progress=progress)
