"""File descriptors: every shard of a run may be open at once."""

from __future__ import annotations

import resource
from collections.abc import Iterable

from surgery.checkpoint import Checkpoint
from surgery.errors import Fault, PlanError

_SPARE = 64  # beside the shards: standard streams, libraries, the journal


def reserve_descriptors(inputs: Iterable[Checkpoint], written: int) -> None:
    """Raise the soft limit for all shards of the inputs and so many files written; the usual 1,024 can be short.

    Raises PlanError when the hard limit is too low.
    """
    needed = sum(len(checkpoint.shards) for checkpoint in inputs) + written + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        message = (
            f"{needed} files are open at a time, the limit is {hard}; raise it (`ulimit -Hn`), merge shards, or make "
            f"fewer outputs at a time"
        )
        raise PlanError([Fault("", message)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
