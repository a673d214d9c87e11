"""Short names of models, for tables, figures and the names of arrays."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence

from surgery.checkpoint import Checkpoint

LONGEST = 40  # characters


def short_names(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """One for each checkpoint, in letters, digits, `.`, `_` and `-`: the end of its path, as long as tells them apart.

    Of a model with adapters it is that of the last adapter.
    `runs/sft/final` and `runs/ppo/final` become `sft-final` and `ppo-final`; one path given twice is numbered.
    """
    parts = [_parts(checkpoint) for checkpoint in checkpoints]
    names: list[str] = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = 1
        while length < len(own) and any(own[-length:] == other[-length:] for other in others):
            length += 1
        name = "-".join(own[-length:])[-LONGEST:]
        free = (f"{name}-{count}" for count in itertools.count(2))
        names.append(name if name not in names else next(other for other in free if other not in names))
    return tuple(names)


def _parts(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.adapters:
        adapter = checkpoint.adapters[-1]
        text = adapter.source if adapter.hub_id is not None else os.path.abspath(adapter.root)  # noqa: PTH100
    elif checkpoint.hub_id is not None:
        text = checkpoint.source
    else:
        path = checkpoint.root if checkpoint.is_directory else checkpoint.shards[0].path.with_suffix("")
        # not where a link leads: `final` says more than `checkpoint-800`
        text = os.path.abspath(path)  # noqa: PTH100
    parts = [re.sub(r"[^\w.-]+", "-", part, flags=re.ASCII).strip("-.") for part in text.split("/")]
    return [part for part in parts if part] or ["model"]
