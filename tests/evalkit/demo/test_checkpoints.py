"""The small checkpoints that the package carries: whole, small, of one line, and of no machine."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from evalkit.digest import checkpoint_digest
from evalkit.engines import make_engine
from evalkit.engines.base import Model, Request, Sampling
from evalkit.tasks.general_points_steps import GeneralPointsSteps
from surgery.checkpoint import open_checkpoint

CHECKPOINTS = Path(str(resources.files("evalkit"))) / "demo" / "checkpoints"
PARENTS = {"inter-sft": "base", "sft": "base", "rl": "sft"}
NAMES = ("base", *PARENTS)


def manifest(name: str) -> dict[str, Any]:
    """What the trainer wrote of a checkpoint."""
    content: dict[str, Any] = json.loads((CHECKPOINTS / name / "training.json").read_bytes())
    return content


@pytest.mark.parametrize("name", NAMES)
def test_each_is_as_its_trainer_left_it(name: str) -> None:
    """At most 2 MB in bfloat16, every file of the digest in the manifest, and paths of nobody's machine."""
    files = {path.name: path.read_bytes() for path in (CHECKPOINTS / name).iterdir()}
    assert sum(map(len, files.values())) <= 2_000_000
    known = manifest(name)["files"]
    assert known == {file: blake3(content).hexdigest() for file, content in files.items() if file != "training.json"}
    tensors = open_checkpoint(str(CHECKPOINTS / name)).tensors
    assert {info.dtype.torch for info in tensors.values()} == {torch.bfloat16}
    for file in ("training.json", "README.md", "config.json", "tokenizer_config.json"):
        assert b"/tmp" not in files[file]
        assert b"/home" not in files[file]
        assert b"/work" not in files[file]


@pytest.mark.parametrize("name", PARENTS)
def test_each_comes_from_the_other(name: str) -> None:
    """The manifest names the digest of the checkpoint that it was made from; all have the seed 0."""
    parent = checkpoint_digest(open_checkpoint(str(CHECKPOINTS / PARENTS[name])))
    assert manifest(name)["parent"]["digest"] == parent
    assert {manifest(each)["config"]["seed"] for each in NAMES} == {0}


def test_they_answer_in_the_words_of_the_task() -> None:
    """The base ends its answer to a problem that it was trained on by itself, in the form that is asked for."""
    task = GeneralPointsSteps()
    example = task.examples("id", 1, part="train")[0]
    checkpoint = open_checkpoint(str(CHECKPOINTS / "base"))
    with make_engine("transformers", {}) as engine:
        engine.load(Model("base", checkpoint_digest(checkpoint), checkpoint.root), 128)
        request = Request(task.prompt(example.data), 0)
        ((_, completion),) = engine.generate([request], Sampling(0.0, task.max_tokens))
    assert completion.finish == "stop"
    assert task.grade(example.data, completion.text).kind in ("correct", "wrong value", "wrong numbers", "illegal")
