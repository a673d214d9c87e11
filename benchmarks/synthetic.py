"""Synthetic checkpoints for the benchmarks: the shapes of a Llama of 1.2 billion parameters, bf16, random weights.

    python benchmarks/synthetic.py DIRECTORY [LAYERS] [NAME...]   writes `base`, and `sft` or those named, unless there

The spectra decay about as those of trained models do, since the route of a decomposition depends on that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, MLP, KEY_VALUE, VOCABULARY = 2048, 8192, 512, 128_256
SHARDS = 4
DECAY = 0.2  # the k-th input feature has scale k^-DECAY; the condition of route 1 (kappa of triplets.py) is then 70
CHANGE = 0.05  # relative size of the fine-tuned model's difference to its base


def layer_shapes() -> dict[str, tuple[int, int]]:
    """Names and shapes of the matrices of one layer."""
    return {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEY_VALUE, HIDDEN),
        "self_attn.v_proj": (KEY_VALUE, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (MLP, HIDDEN),
        "mlp.up_proj": (MLP, HIDDEN),
        "mlp.down_proj": (HIDDEN, MLP),
    }


def model_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the model."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in layer_shapes().items()}
        shapes |= {f"{prefix}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {"model.norm.weight": (HIDDEN,)}


def write_models(directory: Path, layers: int, tuned: Sequence[str]) -> None:
    """Write `base` below a directory, and models that are it plus noise, each its own."""
    for number, name in enumerate(("base", *tuned)):
        if not (directory / name / "config.json").exists():
            _write(directory / name, layers, number)


def _write(directory: Path, layers: int, number: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    names = list(model_shapes(layers))
    per_shard = -(-len(names) // SHARDS)
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        chosen = names[shard * per_shard : (shard + 1) * per_shard]
        tensors = {name: _weight(name, model_shapes(layers)[name], number) for name in chosen}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))


def _weight(name: str, shape: tuple[int, ...], number: int) -> torch.Tensor:
    # The seed depends on the name alone, so that all models share their base part.
    generator = torch.Generator().manual_seed(sum(name.encode()) * 1000 + len(name))
    scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
    weight = torch.randn(shape, generator=generator).mul_(scale)
    if len(shape) == 2:
        weight *= torch.arange(1, shape[-1] + 1) ** -DECAY
    for tuned in range(1, number + 1):  # each draws its noise after that of those before it
        noise = torch.randn(shape, generator=generator)
        if tuned == number:
            weight += CHANGE * scale * noise
    return weight.to(torch.bfloat16)


if __name__ == "__main__":
    write_models(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 16, sys.argv[3:] or ["sft"])
