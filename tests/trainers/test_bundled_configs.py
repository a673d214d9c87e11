"""The configurations that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from surgery import bundled
from trainers import data
from trainers.api import load_config
from trainers.config import SftConfig
from trainers.loading import FOLDER

ACCELERATE = Path(__file__).parents[2] / "recipes" / "train" / "accelerate"


@pytest.mark.parametrize("name", bundled.names(FOLDER))
def test_each_has_its_data(name: str) -> None:
    """It is valid for its trainer, and its task has as many problems as it asks for, to learn and to measure."""
    config = load_config(name.partition("-")[0], name, model="m", out="o")
    if isinstance(config, SftConfig):
        assert len(data.training_records(config.data, config.seed)) == config.data.n
        assert {len(found) for found in data.held_out_records(config).values()} == {config.held_out.n}
    else:
        assert len(data.problems(config.data, config.seed)[1]) == config.data.n
        assert {len(found) for found in data.success_problems(config).values()} == {config.success.n}


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_files(path: Path) -> None:
    """Eight processes, weights divided among them, computing in bfloat16."""
    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    assert config.mixed_precision == "bf16"
    assert config.fsdp_config or config.deepspeed_config
