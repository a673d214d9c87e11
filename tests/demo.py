"""The main job on small checkpoints, what `make demo` runs: python -m tests.demo DIRECTORY.

Makes a base model with random weights and an `sft` model whose singular vectors are turned while the singular values
stay, edits the pair by three bundled recipes, checks the results, and says how far each lies from both models.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HIDDEN, MLP, HEADS, LAYERS, VOCABULARY = 256, 704, 4, 4, 1000
DECAY = 0.8  # the k-th singular value is about k^-DECAY, as in trained models, where a few directions carry much
ANGLE = 0.2  # radians by which `sft` turns the singular vectors
RECIPES = ("restore-top-20pct", "restore-top-20pct-rotate", "wise-ft")
MATRICES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}

Weights = dict[str, torch.Tensor]


def make_base(random: torch.Generator) -> Weights:
    """Random weights of a Llama model."""
    weights = {"model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN, generator=random)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns) in MATRICES.items():
            U = torch.linalg.qr(torch.randn(rows, HIDDEN, generator=random)).Q
            V = torch.linalg.qr(torch.randn(columns, HIDDEN, generator=random)).Q
            weights[f"{prefix}.{name}.weight"] = U * torch.arange(1, HIDDEN + 1) ** -DECAY @ V.T
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{name}.weight"] = torch.ones(HIDDEN)
    return weights | {"model.norm.weight": torch.ones(HIDDEN)}


def make_sft(base: Weights, random: torch.Generator) -> Weights:
    """The same model with every matrix of the layers turned on its short side."""
    sft = dict(base)
    for name, W in base.items():
        if ".layers." in name and W.ndim == 2:
            G = torch.randn(HIDDEN, HIDDEN, generator=random)
            Q = torch.linalg.matrix_exp(ANGLE * (G - G.T) / (2 * HIDDEN) ** 0.5)
            sft[name] = Q @ W if W.shape[0] == HIDDEN else W @ Q
    return sft


def write(weights: Weights, directory: Path) -> None:
    """Write a checkpoint directory: one file of weights in bfloat16, and the config."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))


def make_pair(directory: Path) -> tuple[Path, Path]:
    """Write `base` and `sft` below a directory."""
    random = torch.Generator().manual_seed(0)
    weights = make_base(random)
    write(weights, directory / "base")
    write(make_sft(weights, random), directory / "sft")
    return directory / "base", directory / "sft"


def surgery(*arguments: str | Path) -> None:
    """Show a command, and run it."""
    print("$ surgery", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "surgery.cli", *map(str, arguments)], check=True)


def distance(one: Path, other: Path) -> float:
    """Relative Frobenius distance |one - other| / |other| over the matrices of the layers."""
    A, B = (load_file(directory / "model.safetensors") for directory in (one, other))
    names = [name for name, W in B.items() if ".layers." in name and W.ndim == 2]
    difference = sum((A[name].float() - B[name].float()).square().sum().item() for name in names)
    norm = sum(B[name].float().square().sum().item() for name in names)
    return (difference / norm) ** 0.5


def main(directory: Path) -> None:
    """Make the pair, edit it by each recipe, and report."""
    base, sft = make_pair(directory)
    surgery("plan", RECIPES[0], base, sft)
    for recipe in RECIPES:
        surgery("apply", recipe, base, sft, directory / recipe, "--overwrite")
        surgery("verify", directory / recipe)
    print("\nRelative distance of the layers' matrices (not a score: these models were never trained):")
    print(f"{'':26}to base  to sft")
    for made in (sft, *(directory / recipe for recipe in RECIPES)):
        print(f"{made.name:26}{distance(made, base):7.1%} {distance(made, sft):7.1%}")
    print(f"\nThe checkpoints lie in {directory}; each holds its manifest, surgery.json, and a model card.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
