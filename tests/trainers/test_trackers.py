"""Trackers are looked for before a run begins."""

from __future__ import annotations

import pytest

from trainers import trackers
from trainers.config import SftConfig
from trainers.errors import TrainingError
from trainers.loading import load


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that is not installed is named; those that are installed pass."""
    given = {"model": "m", "out": "o", "data": {"file": "f"}, "report_to": ["tensorboard", "wandb", "mlflow"]}
    config = load(SftConfig, given)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(TrainingError, match="`report_to` names `wandb`, which is not installed; pip install wandb"):
        trackers.check_trackers(config)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    trackers.check_trackers(config)
