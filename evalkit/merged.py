"""Models with adapters over them as checkpoints that an engine can load, beside the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import surgery
from surgery.adapters.naming import split_source
from surgery.api import Model, Variant

MERGED = "models"  # their directory, in that of the results
_RECIPE = "merge-adapter"


def has_adapters(model: Model) -> bool:
    """Whether it is `MODEL+ADAPTER`."""
    return len(split_source(str(model))) > 1


def merge(model: Model, place: Path, **resources: Any) -> Path:
    """Make the checkpoint `place` of a model and its adapters; `resources` are those of `surgery.apply_all`.

    What an earlier run has made of the same files is left as it is. Raises any SurgeryError.
    """
    surgery.apply_all([Variant(_RECIPE, place, models={"sft": model})], {}, overwrite=True, **resources)
    return place
