"""The checkpoint that a run begins with: what is refused, and what the network is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters.peft import factors, write_adapter
from tests.tiny_models import save_tiny
from trainers.config import SftConfig
from trainers.errors import TrainingError
from trainers.loading import load
from trainers.parent import check_vocabulary, load_network, open_parent


def config(model: Path) -> SftConfig:
    """A configuration that begins with a model."""
    return load(SftConfig, {"model": str(model), "out": "o", "device": "cpu", "data": {"task": "general_points"}})


def test_is_float32_and_trains(tmp_path: Path) -> None:
    """Whatever is stored, every weight is a float32 parameter in training mode, with the stored value."""
    model = save_tiny(tmp_path / "model", dtype=torch.bfloat16)
    network = load_network(open_parent(str(model)), config(model))
    assert network.training
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in network.parameters())
    stored = load_file(model / "model.safetensors")
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in network.state_dict().items())


def test_is_named_by_content(tmp_path: Path) -> None:
    """The digest is that of the files, wherever they lie."""
    first, second, other = (
        open_parent(str(save_tiny(tmp_path / name, seed))) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.digest == second.digest != other.digest
    assert first.json() == {
        "source": str(tmp_path / "a"), "hub_id": None, "revision": None, "digest": first.digest,
    }  # fmt: skip


def test_single_file(tmp_path: Path) -> None:
    """Weights alone cannot be trained."""
    file = save_tiny(tmp_path / "model") / "model.safetensors"
    with pytest.raises(TrainingError, match=r"is a single file; expected a directory with weights, `config\.json` and"):
        open_parent(str(file))


def test_an_adapter_over_a_model(tmp_path: Path) -> None:
    """It is trained as one checkpoint, which the message says how to make."""
    model = save_tiny(tmp_path / "model")
    lora = write_adapter(tmp_path / "lora", factors(load_file(model / "model.safetensors")))
    with pytest.raises(TrainingError, match=r"surgery apply merge-adapter MODEL\+ADAPTER OUT"):
        open_parent(f"{model}+{lora}")


def test_quantised(tmp_path: Path) -> None:
    """Neither what says that it is quantised nor what has such tensors."""
    model = save_tiny(tmp_path / "model")
    config, weights = json.loads((model / "config.json").read_bytes()), load_file(model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    with pytest.raises(TrainingError, match="is quantised: it has a `quantization_config`; give the checkpoint in"):
        open_parent(str(model))
    (model / "config.json").write_text(json.dumps(config))
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="is quantised: it has tensors of dtype F8_E4M3; give the checkpoint in"):
        open_parent(str(model))


def test_vocabulary(tmp_path: Path) -> None:
    """A token beyond the embedding is refused, the last one within is not."""
    model = save_tiny(tmp_path / "model")
    network = load_network(open_parent(str(model)), config(model))
    check_vocabulary(network, "m", 103)
    with pytest.raises(TrainingError, match="`m`: its tokenizer gives the token 104, but the model has 104 tokens"):
        check_vocabulary(network, "m", 104)
