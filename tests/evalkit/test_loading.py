"""Checkpoints that do not fit together are refused, by name and with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evalkit.engines.base import Model, Request, Sampling
from evalkit.engines.transformers import TransformersEngine
from evalkit.errors import EngineError
from tests.tiny_models import save_tiny, tokenizer

VOCABULARY = len(tokenizer())


def loaded(path: Path) -> TransformersEngine:
    """The checkpoint in an engine."""
    engine = TransformersEngine({"device": "cpu"})
    engine.load(Model("tiny", "0", path), 128)
    return engine


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def configure(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


UP = "model.layers.0.mlp.up_proj.weight"

FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda p: (p / "config.json").unlink(), "`tiny` has no `config.json` in"),
    "no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), "`tiny` has no tokenizer"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), r"`tiny` has no weights: no `\*.safetensors`"),
    "pickled weights": (
        lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"),
        r"`tiny` holds pickled weights \(`pytorch_model.bin`\), which can run code .*convert them to safetensors",
    ),
    "missing tensor": (lambda p: change(p, lambda t: t.pop(UP)), rf"it lacks `{UP}`; complete the weights"),
    "missing head": (lambda p: change(p, lambda t: t.pop("lm_head.weight")), "it lacks `lm_head.weight`"),
    "another shape": (
        lambda p: change(p, lambda t: t.update({UP: torch.zeros(3, 64)})),
        rf"`{UP}` is \[3, 64\] and not \[128, 64\]",
    ),
    "superfluous tensor": (
        lambda p: change(p, lambda t: t.update(odd=torch.zeros(2))),
        "nothing takes its `odd`",
    ),
    "unknown type": (
        lambda p: configure(p, model_type="novel", architectures=["NovelForCausalLM"]),
        r"does not take its `config.json` \(.*`novel`",
    ),
    "unknown architecture": (
        lambda p: configure(p, architectures=["NovelForCausalLM"]),
        "does not have the architecture `NovelForCausalLM`",
    ),
    "no decoder": (
        lambda p: configure(p, architectures=["LlamaForSequenceClassification"]),
        "`LlamaForSequenceClassification` is no decoder that continues texts",
    ),
    "no network": (lambda p: configure(p, architectures=["LlamaConfig"]), "`LlamaConfig` is no decoder"),
    "truncated weights": (
        lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-100]),
        "`tiny`: transformers cannot load it",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_checkpoints(tmp_path: Path, fault: str) -> None:
    """Whatever is wrong with a checkpoint is an error before it answers; nothing is filled with random numbers."""
    path = save_tiny(tmp_path)
    spoil, message = FAULTS[fault]
    spoil(path)
    with pytest.raises(EngineError, match=message):
        loaded(path)


def test_architecture_by_type_where_none_is_named(tmp_path: Path) -> None:
    """A configuration without `architectures` is of its type's causal language model."""
    path = save_tiny(tmp_path)
    configure(path, architectures=None)
    with loaded(path) as engine:
        assert type(engine._network).__name__ == "LlamaForCausalLM"


def test_nan_weights(tmp_path: Path) -> None:
    """A spoilt network says so instead of answering nonsense."""
    path = save_tiny(tmp_path)
    change(path, lambda t: t[UP].fill_(torch.nan))
    with loaded(path) as engine:
        for temperature in (0.0, 1.0):
            with pytest.raises(EngineError, match="`tiny` gives NaN or infinity"):
                list(engine.generate([Request("a")], Sampling(temperature, 2)))
        with pytest.raises(EngineError, match="`tiny` gives NaN or infinity"):
            list(engine.score([("a", "b")], end=False))


def test_tokens_that_the_model_lacks(tmp_path: Path) -> None:
    """A tokenizer that has grown without its model is found out."""
    path = save_tiny(tmp_path)
    grown = tokenizer()
    grown.add_tokens(["new"])
    grown.save_pretrained(path)
    with (
        loaded(path) as engine,
        pytest.raises(EngineError, match=rf"gives the token {VOCABULARY}, but the model has {VOCABULARY} tokens"),
    ):
        list(engine.generate([Request("new")], Sampling(max_tokens=2)))
