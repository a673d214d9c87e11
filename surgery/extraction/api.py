"""`surgery.extract_lora`: arguments in, an adapter out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.workers import chosen_workers

# torch, pydantic and the rest are imported when the verb is called: `import surgery` stays quick.
if TYPE_CHECKING:
    from surgery.api import Model
    from surgery.extraction.report import Extracted
    from surgery.extraction.run import Progress


def extract_lora(
    base: Model,
    model: Model,
    out: str | Path,
    *,
    rank: int | str | None = None,
    error: float | None = None,
    layers: str | None = None,
    tensors: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    save: str | Sequence[str] = (),
    dtype: str = "float32",
    workers: int | None = None,
    memory: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    fresh: bool = False,
    durable: bool = False,
    progress: Progress | None = None,
) -> Extracted:
    """Make the LoRA adapter over `base` that comes closest to `model`: the directory `out`, which PEFT loads.

    For each weight W of a linear layer that differs from the base's b, factors B A of W - b: its leading singular
    triplets, the closest matrix of that rank. The result tells of each, and of all, what is kept of the change.

    rank: of each matrix, a count or a percentage of its directions; or error: for each the smallest rank with
    |W - b - B A| <= error |W - b| (Frobenius norms), before the factors are rounded to `dtype` (float32, bfloat16,
    float16). layers, tensors, exclude: as in a recipe's `select`; default: everything. save: groups or globs of what
    is stored whole where it differs (`norm`, `embedding`), in `modules_to_save`. The others as for `apply`.

    Run again after an interruption it goes on where it was, to the same bytes. Raises any SurgeryError, ValueError for
    a rank, an error, a dtype or layers that cannot be read.
    """
    from surgery.dtypes import OUTPUT_DTYPES
    from surgery.extraction.choice import Aim
    from surgery.extraction.extract import Options, extract
    from surgery.quantity import Quantity
    from surgery.select import selecting

    if (rank is None) == (error is None):
        raise ValueError(f"found `rank={rank}` and `error={error}`; expected one of the two")
    if error is not None and not 0 < error < 1:
        raise ValueError(f"found `error={error}`; expected a number between 0 and 1")
    if dtype not in OUTPUT_DTYPES:
        raise ValueError(f"found `dtype={dtype}`; expected one of {', '.join(OUTPUT_DTYPES)}")
    asked = None if rank is None else Quantity.parse(rank)
    if asked is not None and asked.of(1) == 0:
        raise ValueError(f"found `rank={rank}`; expected at least 1")
    return extract(
        base,
        model,
        Path(out),
        Aim(asked, error),
        dtype,
        Options(chosen_workers(workers), memory, device, overwrite, fresh, durable),
        select=selecting(layers, tensors, exclude),
        save=(save,) if isinstance(save, str) else tuple(save),
        progress=progress,
    )
