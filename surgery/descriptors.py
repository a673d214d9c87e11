"""File descriptors: every shard of a run may be open at once."""

from __future__ import annotations

import resource

from surgery.errors import Fault, PlanError
from surgery.plan import Plan

_SPARE = 64  # beside the shards: standard streams, libraries, the journal


def reserve_descriptors(plan: Plan) -> None:
    """Raise the soft limit as far as the plan needs; the usual 1,024 is short for the largest checkpoints.

    Raises PlanError when the hard limit is too low.
    """
    needed = sum(len(checkpoint.shards) for checkpoint in plan.inputs.values()) + len(plan.files) + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        message = f"{needed} files are open at a time, the limit is {hard}; raise it (`ulimit -Hn`), or merge shards"
        raise PlanError([Fault("", message)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
