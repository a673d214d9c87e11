"""The verb: configurations of each trainer, and errors that are not ours made ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainers import api
from trainers.config import GrpoConfig, PpoConfig, SftConfig
from trainers.errors import ConfigError, TrainingError

GIVEN = {"model": "m", "out": "o", "data": {"task": "general_points"}}


@pytest.mark.parametrize(("trainer", "kind"), [("sft", SftConfig), ("ppo", PpoConfig), ("grpo", GrpoConfig)])
def test_load_config(trainer: str, kind: type) -> None:
    """Each trainer has its own kind, with settings, model and directory put in."""
    config = api.load_config(trainer, GIVEN, settings={"seed": 3}, model="n", out="p")
    assert type(config) is kind
    assert (config.model, config.out, config.seed) == ("n", "p", 3)


def test_unknown_trainer() -> None:
    """It is compared with those that there are."""
    with pytest.raises(ConfigError, match=r"unknown trainer `pppo`; did you mean `ppo`\?"):
        api.train("pppo", GIVEN)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("no", name="trl"), r"needs `trl`, which is not installed: pip install 'surgery\[train\]'"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "the device's memory does not suffice; lower `micro_batch_size`",
        ),
    ],
)
def test_errors_of_others(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is missing and memory that does not suffice are messages; our own faults stay what they are."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(api, "_run", fail)
    with pytest.raises(TrainingError, match=message):
        api.train("sft", GIVEN)
    error = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        api.train("sft", GIVEN)
