"""How many threads the arithmetic of a network gets on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Below this, an operation takes less time than threads need to meet, and where anything else runs on the machine they
# wait for each other at every one. A Llama of 0.93 million parameters beside another busy process on two cores: 400
# answers take 1.7 s with one thread and 27 s with two, 60 steps of fine-tuning 24 s and 146 s.
SMALL = 10_000_000  # parameters


def suit_threads(network: Any) -> None:
    """One thread for a small network on a CPU, from here on.

    The number of threads is the process's. It decides over the last bits of results.
    """
    if network.device.type == "cpu" and network.num_parameters() < SMALL:
        torch.set_num_threads(1)


@contextmanager
def threads_kept() -> Iterator[None]:
    """Afterwards as many threads as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
