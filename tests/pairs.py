"""Pairs of tiny checkpoints in any dtype, for what reads two models at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.conftest import llama_arrays

LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def llama(seed: int = 0, dtype: torch.dtype = torch.bfloat16, **shape: Any) -> dict[str, torch.Tensor]:
    """Random weights with the names and proportions of a Llama model."""
    return {name: torch.from_numpy(array).to(dtype) for name, array in llama_arrays(seed=seed, **shape).items()}


def near(tensors: Mapping[str, torch.Tensor], seed: int = 1, change: float = 0.1) -> dict[str, torch.Tensor]:
    """The same model after some training: every float tensor moved by a relative `change`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + (change * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in tensors.items()
    }


def write(
    directory: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1, config: Mapping[str, Any] | None = None
) -> Path:
    """Write a checkpoint directory of one file, or of several with an index."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(LLAMA_CONFIG if config is None else config))
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map = {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def read(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint directory, by the safetensors library."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, with its content."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
