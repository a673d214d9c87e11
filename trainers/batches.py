"""How a batch is shared out among devices."""

from __future__ import annotations

from surgery.errors import Fault
from trainers.errors import ConfigError


def accumulation(key: str, found: str, total: int, micro_batch_size: int, processes: int) -> tuple[int, int]:
    """Sequences at a time on each device, and how many times before an optimiser step of `total` sequences.

    Raises ConfigError, where the key is at fault and `found` its value in words.
    """
    each, rest = divmod(total, processes)
    micro = min(micro_batch_size, each)
    if rest or each % micro:
        message = (
            f"found {found} with `micro_batch_size` {micro_batch_size} on {processes} "
            f"{'device' if processes == 1 else 'devices'}; expected a multiple of {processes * max(micro, 1)}"
        )
        raise ConfigError([Fault(key, message)])
    return micro, each // micro
