"""Adapters in PEFT's layout, and PEFT's arithmetic written anew, in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."
TARGETS = ("q_proj", "down_proj")
Tensors = dict[str, torch.Tensor]


def factors(
    base: Mapping[str, torch.Tensor],
    targets: Sequence[str] = TARGETS,
    rank: int = 3,
    ranks: Mapping[str, int] | None = None,
    seed: int = 5,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """Random `lora_A` and `lora_B` for the modules whose names end in one of `targets`; `ranks` by module."""
    generator = torch.Generator().manual_seed(seed)
    found: Tensors = {}
    for name, W in base.items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in targets:
            r = (ranks or {}).get(module, rank)
            found[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(r, W.shape[1], generator=generator).to(dtype)
            found[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(W.shape[0], r, generator=generator).to(dtype)
    return found


def config(**fields: Any) -> dict[str, Any]:
    """`adapter_config.json` of an ordinary LoRA."""
    ordinary = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": 3,
        "lora_alpha": 6,
        "target_modules": list(TARGETS),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    return {**ordinary, **fields}


def write_adapter(directory: Path, tensors: Mapping[str, torch.Tensor], **fields: Any) -> Path:
    """An adapter's directory."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(config(**fields)))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "adapter_model.safetensors")
    return directory


def merged(base: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor], **fields: Any) -> Tensors:
    """`merge_and_unload` in float64: W + scaling * transpose(B @ A), whole tensors replaced, biases added to."""
    settings = config(**fields)
    result = {name: W.double() for name, W in base.items()}

    def scaling(module: str) -> float:
        r = next((v for k, v in settings["rank_pattern"].items() if module.endswith(k)), settings["r"])
        alpha = next((v for k, v in settings["alpha_pattern"].items() if module.endswith(k)), settings["lora_alpha"])
        return float(alpha / math.sqrt(r) if settings["use_rslora"] else alpha / r)

    plain = {key.removeprefix(PREFIX).replace(".default", ""): tensor.double() for key, tensor in adapter.items()}
    for key, tensor in plain.items():
        if ".lora_" not in key:
            result[key.replace(".modules_to_save", "").replace(".base_layer", "")] = tensor
    for key, A in plain.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            delta = plain[f"{module}.lora_B.weight"] @ A * scaling(module)
            turned = settings["fan_in_fan_out"] and delta.T.shape == result[f"{module}.weight"].shape
            result[f"{module}.weight"] = result[f"{module}.weight"] + (delta.T if turned else delta)
            bias = plain.get(f"{module}.lora_B.bias")
            if bias is not None:
                result[f"{module}.bias"] = result[f"{module}.bias"] + bias * scaling(module)
        elif key.endswith(".lora_embedding_A"):
            module = key.removesuffix(".lora_embedding_A")
            delta = plain[f"{module}.lora_embedding_B"] @ A * scaling(module)
            result[f"{module}.weight"] = result[f"{module}.weight"] + delta.T
    return result
