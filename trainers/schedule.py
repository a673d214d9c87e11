"""The learning rate's course, as transformers names it."""

from __future__ import annotations

from trainers.config import Optimizer


def scheduler_arguments(optimizer: Optimizer, steps: int) -> tuple[str, int, dict[str, float]]:
    """Name, warm-up steps and options of transformers' scheduler for a run of so many optimiser steps."""
    warmup = optimizer.warmup.of(steps)
    if optimizer.schedule == "cosine" and optimizer.min_learning_rate:
        return "cosine_with_min_lr", warmup, {"min_lr": optimizer.min_learning_rate}
    return {"constant": "constant_with_warmup"}.get(optimizer.schedule, optimizer.schedule), warmup, {}
