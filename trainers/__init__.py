"""Makes checkpoints: supervised fine-tuning, PPO and GRPO on the tasks of `evalkit`.

`train` is the command line's verb, and `Report` what comes of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.api import load_config, train
    from trainers.report import Report

__all__ = ["Report", "load_config", "train"]

_HOMES = {"Report": "report", "load_config": "api", "train": "api"}


def __getattr__(name: str) -> Any:
    """Each name is imported when it is first used, so that `surgery --help` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"trainers.{_HOMES[name]}"), name)
