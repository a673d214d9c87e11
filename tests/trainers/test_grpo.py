"""GRPO: what TRL is handed, that it learns, that it goes on after a kill, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evalkit.draw import Draw
from evalkit.engines.base import Model
from evalkit.rendering import Renderer
from evalkit.run import Asking
from evalkit.task import CORRECT, Data, Grade, Task
from evalkit.tasks import TASKS
from tests.tiny_models import save_tiny, tokenizer
from trainers import data
from trainers.api import load_config, train
from trainers.config import GrpoConfig
from trainers.errors import ConfigError, TrainingError
from trainers.grpo_run import _Player
from trainers.progress import Silence
from trainers.rollout import Episode

ROOT = Path(__file__).parents[2]
LETTER = "w"  # which the tiny model of seed 2 gives now and then


class Letter(Task):
    """Say the letter that is wanted."""

    name: ClassVar[str] = "letter"
    version: ClassVar[int] = 1
    max_tokens: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = ("wrong letter",)

    def draw(self, split: str, draw: Draw) -> Data:
        low = {"id": 0, "ood": 1000}[split]
        return {"number": draw.integer(low, low + 999)}

    def question(self, data: Data) -> str:
        return f"Which letter? {data['number']}"

    def grade(self, data: Data, answer: str) -> Grade:
        right = answer == LETTER
        return Grade(CORRECT if right else "wrong letter", float(right), "Right." if right else "Another letter.")

    def reference(self, data: Data) -> str:
        return LETTER


@pytest.fixture(autouse=True)
def _letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "letter", Letter)  # type: ignore[arg-type]  # a dict


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), seed=2)


def settings(**others: Any) -> dict[str, Any]:
    """A small run that learns."""
    return {
        "data": {"task": "letter", "n": 40},
        "updates": 4,
        "prompts": 4,
        "generations": 6,
        "epochs": 2,
        "micro_batch_size": 8,
        "optimizer": {"learning_rate": 3e-3, "schedule": "constant"},
        "success": {"every": 2, "n": 6},
        **others,
    }


def run(tiny: Path, out: Path, resume: bool = False, progress: Any = None, **others: Any) -> Any:
    return train("grpo", settings(**others), model=tiny, out=out, resume=resume, progress=progress)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


class Recorded:
    """Every episode that was played, and every call of the network with its answers, by the run under test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from trainers import grpo

        self.episodes: dict[int, Sequence[Episode]] = {}
        self.inputs: list[tuple[Mapping[str, Any], torch.Tensor]] = []
        play, loss = _Player.play, grpo._Trainer._compute_loss

        def playing(player: _Player, update: int) -> list[Episode]:
            self.episodes[update] = episodes = play(player, update)
            return episodes

        def computing(trainer: Any, model: Any, inputs: Any) -> torch.Tensor:
            found = loss(trainer, model, inputs)
            self.inputs.append((inputs, trainer._logprobs.clone()))
            return found

        monkeypatch.setattr(_Player, "play", playing)
        monkeypatch.setattr(grpo._Trainer, "_compute_loss", computing)


def test_learns(tiny: Path, tmp_path: Path) -> None:
    """From a letter among others to near certainty, on problems that were not played, too."""
    report = run(
        tiny, tmp_path / "run", updates=12, prompts=8, generations=8, micro_batch_size=64, success={"every": 12, "n": 20}
    )
    first, *_, last = (row for row in rows(tmp_path / "run") if "id_success" in row)
    assert first["id_success"] < 0.5
    assert last["id_success"] == last["ood_success"] == 1
    played = [row["success"] for row in rows(tmp_path / "run") if "success" in row]
    assert played[0] < 0.4
    assert played[-1] > 0.9
    assert report.checkpoints[-1].scores["id"].value == 1
