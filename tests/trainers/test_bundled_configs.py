"""The configurations that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from evalkit.engines.base import Model
from evalkit.rendering import Renderer
from evalkit.tasks.general_points_steps import GeneralPointsSteps
from surgery import bundled
from trainers import data
from trainers.api import init, load_config
from trainers.config import SftConfig
from trainers.loading import FOLDER

ACCELERATE = Path(__file__).parents[2] / "recipes" / "train" / "accelerate"


MINI = {"mini-base": "sft", "mini-sft": "sft", "mini-ppo": "ppo"}  # the trainers of the mini experiment's steps
INITIAL = "mini-init"  # trains nothing
MANY = 2000  # problems of a run of which not all are drawn here


@pytest.mark.parametrize("name", sorted({*bundled.names(FOLDER)} - {INITIAL}))
def test_each_has_its_data(name: str) -> None:
    """It is valid for its trainer, and its task has as many problems as it asks for, to learn and to measure."""
    trainer = MINI.get(name, name.partition("-")[0])
    config = load_config(trainer, name, model="m", out="o")
    if config.data.n is not None and config.data.n > 10_000:
        config = load_config(trainer, name, model="m", out="o", settings={"data.n": MANY})
    if isinstance(config, SftConfig):
        assert len(data.training_records(config.data, config.seed)) == config.data.n
        assert {len(found) for found in data.held_out_records(config).values()} == {config.held_out.n}
    else:
        assert len(data.problems(config.data, config.seed)[1]) == config.data.n
        assert {len(found) for found in data.success_problems(config).values()} == {config.success.n}


def test_the_initial_checkpoint(tmp_path: Path) -> None:
    """It is small enough to be shipped, and the task's problems and answers have room in it."""
    made = init(INITIAL, out=tmp_path / "out")
    assert made["parameters"] < 1_000_000
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 2_000_000
    context = Renderer(Model("made", "", tmp_path / "out")).context
    assert context is not None
    assert context >= 2 * GeneralPointsSteps().max_tokens


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_files(path: Path) -> None:
    """Eight processes, weights divided among them, computing in bfloat16."""
    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    assert config.mixed_precision == "bf16"
    assert config.fsdp_config or config.deepspeed_config
