"""The trackers that a run reports to."""

from __future__ import annotations

from importlib.util import find_spec

from trainers.config import Training
from trainers.errors import TrainingError


def check_trackers(config: Training) -> None:
    """Raise TrainingError for a tracker that is not installed: now, not when the first figure is there."""
    missing = [name for name in config.report_to if find_spec(name) is None]
    if missing:
        raise TrainingError(
            f"`report_to` names `{missing[0]}`, which is not installed; pip install {missing[0]}, or leave it out"
        )
