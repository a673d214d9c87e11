"""Configurations: what they are by default, and which combinations there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from trainers.config import GrpoConfig, InitConfig, Optimizer, PpoConfig, Section, SftConfig, Training
from trainers.errors import ConfigError
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


@pytest.mark.parametrize("kind", [*KINDS, InitConfig])
def test_every_key_is_described(kind: type[Section]) -> None:
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
        (
            Optimizer.model_validate_json('{"schedule": "wsd", "warmup": 60, "decay": "40%"}'),
            ("warmup_stable_decay", 60, {"num_decay_steps": 40, "decay_type": "linear"}),
        ),
    ],
)
def test_schedules(optimizer: Optimizer, expected: object) -> None:
    """The name and options of transformers for a run of a hundred steps."""
    assert scheduler_arguments(optimizer, 100) == expected


def test_the_rate_of_wsd() -> None:
    """Up from 0 in two steps, constant, and down to 0 in four, as transformers takes these options."""
    from torch import nn
    from torch.optim import SGD
    from transformers import get_scheduler

    given = Optimizer.model_validate_json('{"schedule": "wsd", "warmup": 2, "decay": "40%"}')
    name, warmup, options = scheduler_arguments(given, 10)
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, warmup, 10, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"schedule": "wsd"}, "`schedule: wsd` needs `decay`"),
        ({"decay": 5}, "`decay` is of `schedule: wsd`"),
        ({"schedule": "wsd", "decay": 5, "min_learning_rate": 1e-9}, "`min_learning_rate` is where `cosine` ends"),
        ({"name": "muno"}, "optimizer.name: found `muno`; expected `adamw`, `muon`; did you mean `muon`?"),
    ],
)
def test_optimisers_that_are_refused(optimizer: dict[str, object], message: str) -> None:
    """Keys that would have no effect, or lack another one, are errors."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(SftConfig, {**SMALLEST, "optimizer": optimizer})


@pytest.mark.parametrize("kind", [PpoConfig, GrpoConfig])
def test_muon_is_for_fine_tuning(kind: type[Training]) -> None:
    """The trainers that learn from grades have AdamW alone."""
    with pytest.raises(ConfigError, match="unknown key `name`"):
        load(kind, {**SMALLEST, "optimizer": {"name": "muon"}})


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_averages_that_are_none(decay: float) -> None:
    """An average that keeps nothing is the weights, and one that keeps all never moves."""
    assert load(SftConfig, SMALLEST).average is None
    with pytest.raises(ConfigError, match="average"):
        load(SftConfig, {**SMALLEST, "average": decay})


def test_a_decay_without_room() -> None:
    """Warm-up and decay are no longer than the run."""
    given = Optimizer.model_validate_json('{"schedule": "wsd", "warmup": 61, "decay": "40%"}')
    with pytest.raises(ConfigError, match=r"optimizer.decay: found 40 steps after a warm-up of 61; the run has 100"):
        scheduler_arguments(given, 100)


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
        first, _, last = path.stem.partition("-")
        trainer = {"mini": last, "mini-base": "sft"}.get(path.stem if last == "base" else first, first)
        assert re.search(rf"^#.* train {trainer} {path.stem}\b", path.read_text("utf-8"), re.MULTILINE), path.name
