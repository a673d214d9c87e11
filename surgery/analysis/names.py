"""Short names of models, for tables, figures and the names of arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from surgery.checkpoint import Checkpoint

LONGEST = 40  # characters


def short_names(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """One for each checkpoint, in letters, digits, `.`, `_` and `-`: the end of its path, as long as tells them apart.

    `runs/sft/final` and `runs/ppo/final` become `sft-final` and `ppo-final`; equal paths are numbered.
    """
    parts = [_parts(checkpoint) for checkpoint in checkpoints]
    names: list[str] = []
    for i, own in enumerate(parts):
        length = 1
        while length < len(own) and any(own[-length:] == other[-length:] for other in parts[:i] + parts[i + 1 :]):
            length += 1
        name = "-".join(own[-length:])[-LONGEST:]
        taken = sum(
            name == earlier or re.fullmatch(rf"{re.escape(name)}-\d+", earlier) is not None for earlier in names
        )
        names.append(f"{name}-{taken + 1}" if taken else name)
    return tuple(names)


def _parts(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.hub_id is not None:
        text = checkpoint.source
    else:
        path = checkpoint.root if checkpoint.is_directory else checkpoint.shards[0].path.with_suffix("")
        # not where a link leads: `final` says more than `checkpoint-800`
        text = os.path.abspath(path)  # noqa: PTH100
    parts = [re.sub(r"[^\w.-]+", "-", part, flags=re.ASCII).strip("-.") for part in text.split("/")]
    return [part for part in parts if part] or ["model"]
