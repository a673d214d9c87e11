"""The learning rate's course, as transformers names it."""

from __future__ import annotations

from surgery.errors import Fault
from trainers.config import Optimizer
from trainers.errors import ConfigError


def scheduler_arguments(optimizer: Optimizer, steps: int) -> tuple[str, int, dict[str, float | str]]:
    """Name, warm-up steps and options of transformers' scheduler for a run of so many optimiser steps.

    Raises ConfigError where warm-up and decay have no room in the run.
    """
    warmup = optimizer.warmup.of(steps)
    if optimizer.schedule == "cosine" and optimizer.min_learning_rate:
        return "cosine_with_min_lr", warmup, {"min_lr": optimizer.min_learning_rate}
    if optimizer.schedule == "wsd":
        assert optimizer.decay is not None
        decay = optimizer.decay.of(steps)
        if warmup + decay > steps:
            message = f"found {decay:,} steps after a warm-up of {warmup:,}; the run has {steps:,} steps in all"
            raise ConfigError([Fault("optimizer.decay", message)])
        return "warmup_stable_decay", warmup, {"num_decay_steps": decay, "decay_type": "linear"}
    return {"constant": "constant_with_warmup"}.get(optimizer.schedule, optimizer.schedule), warmup, {}
