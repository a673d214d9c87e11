"""Tiny attention models whose value and output projections are in one gauge or another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.strategies import orthonormal

Tensors = dict[str, Tensor]

D, KV, QUERIES, HIDDEN, LAYERS = 8, 2, 6, 24, 2
SHAPE = {
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": QUERIES,
    "num_key_value_heads": KV,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
CONFIG = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False, "head_dim": D}
CONFIG |= {key: SHAPE[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")}
ALIGN = {"op": "procrustes_align", "from": "other"}
STEPS = {"name": "align", "models": ["other", "own"], "steps": [ALIGN]}


def name(layer: int, leaf: str) -> str:
    return f"model.layers.{layer}.self_attn.{leaf}"


def parts(tensors: Mapping[str, Tensor], layer: int = 0) -> list[Tensor]:
    """V, b and O of a layer, float64; b is 0 where there is none."""
    V, O = (tensors[name(layer, f"{leaf}.weight")].double() for leaf in ("v_proj", "o_proj"))  # noqa: E741
    b = tensors.get(name(layer, "v_proj.bias"))
    return [V, V.new_zeros(len(V)) if b is None else b.double(), O]


def random(seed: int = 0, bias: bool = True, dtype: torch.dtype = torch.float32, layers: int = LAYERS) -> Tensors:
    """Attention and a norm in each layer, an embedding and a head, with the names of Qwen2."""
    g = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (40, HIDDEN), "lm_head.weight": (40, HIDDEN)}
    for i in range(layers):
        for leaf, rows in (("q_proj", D * QUERIES), ("k_proj", D * KV), ("v_proj", D * KV)):
            shapes[name(i, f"{leaf}.weight")] = (rows, HIDDEN)
            if bias:
                shapes[name(i, f"{leaf}.bias")] = (rows,)
        shapes[name(i, "o_proj.weight")] = (HIDDEN, D * QUERIES)
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (32, HIDDEN)
    return {
        key: (torch.randn(shape, generator=g, dtype=torch.float64) * 0.3).to(dtype) for key, shape in shapes.items()
    }


def moved(tensors: Mapping[str, Tensor], size: float, seed: int = 9) -> Tensors:
    g = torch.Generator().manual_seed(seed)
    return {
        key: (W.double() + size * torch.randn(W.shape, generator=g, dtype=torch.float64)).to(W.dtype)
        for key, W in tensors.items()
    }


def in_gauge(tensors: Mapping[str, Tensor], seed: int = 3, d: int = D) -> Tensors:
    """The same function: R V, R b, O R^T with a random orthogonal R for every key/value head, by block matrices."""
    g = torch.Generator().manual_seed(seed)
    turned = dict(tensors)
    for layer in range(sum(key.endswith("v_proj.weight") for key in tensors)):
        V, b, O = parts(tensors, layer)  # noqa: E741
        kv, group = len(V) // d, O.shape[1] // len(V)
        Rs = [orthonormal(g, d, d) for _ in range(kv)]
        Rs[0][:, 0] *= -1  # of both signs of the determinant
        inner, outer = torch.block_diag(*Rs), torch.block_diag(*[R for R in Rs for _ in range(group)])
        new = {"v_proj.weight": inner @ V, "v_proj.bias": inner @ b, "o_proj.weight": O @ outer.mT}
        turned |= {key: new[leaf].to(tensors[key].dtype) for leaf in new if (key := name(layer, leaf)) in tensors}
    return turned
