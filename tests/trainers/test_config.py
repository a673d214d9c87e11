"""Configurations: what they are by default, and which combinations there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from trainers.config import GrpoConfig, Optimizer, PpoConfig, Section, SftConfig, Training
from trainers.loading import load
from trainers.schedule import scheduler_arguments

KINDS = (SftConfig, PpoConfig, GrpoConfig)
SMALLEST = {"model": "m", "out": "o", "data": {"task": "general_points"}}


def test_defaults_of_fine_tuning_are_the_papers() -> None:
    """AdamW (0.9, 0.98), eps 1e-7, rate 1e-6 falling as a cosine, no decay, batches of 64, one epoch."""
    config = load(SftConfig, SMALLEST)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.eps) == (1e-6, (0.9, 0.98), 1e-7)
    assert (optimizer.weight_decay, optimizer.schedule) == (0, "cosine")
    assert (config.batch_size, config.epochs, config.loss_every) == (64, 1, 5)


def test_defaults_of_ppo_are_the_papers() -> None:
    """Clip 0.1, gamma 0.9, lambda 0.95, gradients cut at 0.01, four epochs, one ratio a response."""
    config = load(PpoConfig, SMALLEST)
    assert (config.clip, config.gamma, config.lam, config.optimizer.max_grad_norm) == (0.1, 0.9, 0.95, 0.01)
    assert (config.epochs, config.ratio, config.kl) == (4, "response", 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_described(kind: type[Training]) -> None:
    """Messages about a key that is missing say what it is for, from its description."""

    def described(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                described(field.annotation)

    described(kind)


def test_configurations_are_frozen() -> None:
    """Nobody changes a run's configuration on the way."""
    config = load(SftConfig, SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (Optimizer(), ("cosine", 0, {})),
        (Optimizer(min_learning_rate=1e-7), ("cosine_with_min_lr", 0, {"min_lr": 1e-7})),
        (Optimizer(schedule="linear"), ("linear", 0, {})),
        (Optimizer(schedule="constant"), ("constant_with_warmup", 0, {})),
        (Optimizer.model_validate_json('{"warmup": 5}'), ("cosine", 5, {})),
        (Optimizer.model_validate_json('{"warmup": "3%"}'), ("cosine", 3, {})),
    ],
)
def test_schedules(optimizer: Optimizer, expected: object) -> None:
    """The name and options of transformers for a run of a hundred steps."""
    assert scheduler_arguments(optimizer, 100) == expected


def test_trackers_are_transformers_own() -> None:
    """Every tracker of a configuration is known to transformers and to accelerate by that name."""
    from typing import get_args

    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from trainers.config import Tracker

    assert set(get_args(Tracker)) <= set(INTEGRATION_TO_CALLBACK) & set(LOGGER_TYPE_TO_CLASS)


def test_bundled_configurations_say_how_they_are_started() -> None:
    """A comment at the top of each gives the command that starts it."""
    for path in (Path(__file__).parents[2] / "recipes" / "train").glob("*.yaml"):
        trainer = path.stem.partition("-")[0]
        assert re.search(rf"^#.* train {trainer} {path.stem}\b", path.read_text("utf-8"), re.MULTILINE), path.name
