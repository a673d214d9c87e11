"""Plans of whole pipelines: without a network, without the checkpoints, and with everything that is wrong."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import open_checkpoint
from trainers.api import load_config
from trainers.errors import ConfigError
from trainers.reproduce.dry_run import dry_run
from trainers.reproduce.estimates import ACTIVATIONS, BOUNDARY, LIBRARIES, LOGITS, PROMPT, tokens, training_cost
from trainers.reproduce.loading import load
from trainers.reproduce.standins import make_standin

QWEN = 7_615_616_512  # parameters of Qwen2.5-7B
TINY: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 128, "vocab_size": 100, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks the network fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("a dry run asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_paper(tmp_path: Path) -> None:
    """Every stage of the 7B and 11B runs has a plan; checkpoints have the models' sizes; nothing is written."""
    planned = dry_run(load("paper"), tmp_path / "out", 1)
    stages = {stage.name: stage for stage in planned.stages}
    assert len(stages) == len(planned.pipeline.stages)
    assert stages["qwen-swap"].cost.plans[0]["writes"] == pytest.approx(2 * QWEN, rel=1e-4)
    assert stages["qwen-sft"].cost.disk == 14 * 2 * QWEN  # 800 steps, a checkpoint every 60
    assert stages["qwen-sft"].cost.devices == 4
    assert "accelerate launch --config_file fsdp.yaml --module surgery train sft" in stages["qwen-sft"].command
    assert stages["qwen-sft"].models == ("Qwen/Qwen2.5-7B",)
    assert planned.devices == 4
    assert planned.device < 80e9
    assert stages["qwen-ranks"].cost.plans[0]["name"] == "restore-top-20pct head=64 base=inter"
    assert not (tmp_path / "out").exists()


def test_mini(tmp_path: Path) -> None:
    """It fits a small machine, for three seeds, too."""
    one, three = (dry_run(load("mini"), tmp_path, seeds) for seeds in (1, 3))
    assert one.host == three.host < 8e9
    assert one.disk < three.disk < 3 * one.disk < 1e9
    assert one.devices == 0
    assert not [text for text in one.shortages if "GPU" in text]
    hosts = sorted(stage.cost.host for stage in one.stages)
    assert one.host == hosts[-1] + hosts[-2]  # two stages at once
    by_name = {stage.name: stage for stage in one.stages}
    assert by_name["base"].cost.host > 2 * LIBRARIES  # two processes
    assert {stage.name for stage in one.stages if stage.cost.flops} == {"diff", "ranks", "layers", "swap"}


def test_everything_that_is_wrong(tmp_path: Path) -> None:
    """Configurations, options, recipes and models of all stages, at once."""
    data: Any = load("mini").model_dump(mode="json")
    data["stages"][1]["run"][2] = "mini-bass"
    data["stages"][8]["run"] += ["--colour", "red"]
    data["files"]["swap.yaml"]["variants"][0]["recipe"] = "rl-with-sft-direction"
    data["stages"][9]["run"][1] = "org/unknown"
    with pytest.raises(ConfigError) as error:
        dry_run(load(data), tmp_path, 1)
    text = str(error.value)
    for part in (
        "stage `base`: found neither a file nor a bundled configuration `mini-bass`; did you mean `mini-base`?",
        "stage `scores`: `eval`: No such option",
        "did you mean `rl-with-sft-directions`?",
        "stage `diff`: `org/unknown` is on the hub, which a dry run does not ask; give its configuration in `shapes`",
    ):
        assert part in text


def test_checkpoints_that_exist_are_planned_with(tmp_path: Path) -> None:
    """One that a stage has made already stands for itself."""
    place = make_standin(tmp_path / "seed-0" / "init", {**TINY, "num_hidden_layers": 8, "dtype": "float32"}, "")
    planned = dry_run(load("mini"), tmp_path, 1)
    assert planned.stages[0].cost.disk == sum(info.nbytes for info in open_checkpoint(place).tensors.values())


def test_standins_are_holes(tmp_path: Path) -> None:
    """A stand-in opens as a checkpoint of transformers' names and shapes, and takes a few kB of disk."""
    place = make_standin(tmp_path / "model", {**TINY, "vocab_size": 10_000_000}, "shapes.x")
    found = open_checkpoint(place)
    assert found.tensors["model.layers.1.mlp.up_proj.weight"].shape == (128, 64)
    assert found.tensors["lm_head.weight"].dtype.name == "BF16"
    assert (place / "model.safetensors").stat().st_size > 2_000_000_000
    assert 512 * (place / "model.safetensors").stat().st_blocks < 100_000


def test_tied_heads_are_not_written(tmp_path: Path) -> None:
    """As transformers saves them."""
    place = make_standin(tmp_path / "model", {**TINY, "tie_word_embeddings": True}, "shapes.x")
    assert "lm_head.weight" not in open_checkpoint(place).tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "shapes.x.model_type: found `lama`; "),
        ({"dtype": "int4"}, "shapes.x.dtype: found `int4`"),
        ({"hidden_size": 63}, "shapes.x: transformers cannot make it"),
    ],
)
def test_shapes_that_are_none(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """What transformers does not make is said with its place."""
    with pytest.raises(ConfigError, match=message):
        make_standin(tmp_path / "model", {**TINY, **change}, "shapes.x")


def test_training_by_hand(tmp_path: Path) -> None:
    """The formula for a run on two devices with gradient checkpointing, and for one on the processor, in numbers."""
    parent = open_checkpoint(make_standin(tmp_path / "model", TINY, ""))
    parameters = sum(info.elements for info in parent.tensors.values())
    settings = {"micro_batch_size": 4, "gradient_checkpointing": True, "max_length": 10, "steps": 10, "save_every": 3}
    config = load_config("sft", "sft-7b", settings={**settings, "keep": "all"}, model="m", out="o")
    assert tokens(config, parent) == 10
    found = training_cost(config, parent, 2, None)
    layer = ACTIVATIONS * 40 * 64
    assert found.device == 8 * parameters + 2 * BOUNDARY * 40 * 64 + layer + LOGITS * 40 * 100
    assert found.host == LIBRARIES + 2 * 4 * parameters
    assert found.disk == 4 * 2 * parameters
    assert found.peak_disk == found.disk + 2 * 12 * parameters
    config = load_config(
        "sft",
        "sft-7b",
        settings={**settings, "gradient_checkpointing": False, "precision": "float32"},
        model="m",
        out="o",
    )
    on_processor = training_cost(config, parent, 0, None)
    assert on_processor.device is None
    assert on_processor.host == LIBRARIES + 16 * parameters + 2 * 2 * layer + LOGITS * 40 * 100


def test_tokens_of_rollouts(tmp_path: Path) -> None:
    """Of all turns together, as far as the model can look."""
    parent = open_checkpoint(make_standin(tmp_path / "model", {**TINY, "max_position_embeddings": 100_000}, ""))
    config = load_config("ppo", "ppo-7b", model="m", out="o")
    assert tokens(config, parent) == 5 * (PROMPT + 512)
    short = open_checkpoint(make_standin(tmp_path / "short", {**TINY, "max_position_embeddings": 128}, ""))
    assert tokens(config, short) == 128
