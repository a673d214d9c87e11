"""What a launcher of several processes (`accelerate launch`, `torchrun`) says of this one, in its environment."""

from __future__ import annotations

import os

_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # those that accelerate reads too: torchrun's and MPI's
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def rank() -> int:
    """The number of this process among all; 0 is the one that writes and speaks, and any that is on its own."""
    return _first(_RANKS, 0)


def several() -> bool:
    """Whether there are other processes."""
    return _first(_SIZES, 1) > 1


def _first(names: tuple[str, ...], default: int) -> int:
    return next((int(text) for name in names if (text := os.environ.get(name, "")).isdecimal()), default)
