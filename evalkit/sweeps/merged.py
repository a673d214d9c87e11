"""The models of a sweep as checkpoints that an engine can load: adapters over a model are merged into one first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evalkit.merged import MERGED, has_adapters, merge
from evalkit.sweeps.maker import Making
from surgery.api import Model


def with_adapters(models: Mapping[str, Model]) -> dict[str, Model]:
    """Those of the models, by role, that are `MODEL+ADAPTER`."""
    return {role: model for role, model in models.items() if has_adapters(model)}


def merge_all(models: Mapping[str, Model], out: Path, making: Making) -> dict[str, Model]:
    """Where each model can be scored: in `out/models/ROLE` for one with adapters, else where it is.

    What an earlier run has made of the same files is left as it is. Raises any SurgeryError.
    """
    places: dict[str, Model] = dict(models)
    for role, model in with_adapters(models).items():
        places[role] = merge(
            model, out / MERGED / role, workers=making.workers, memory=making.memory, device=making.device,
            cache=making.cache,
        )  # fmt: skip
    return places
