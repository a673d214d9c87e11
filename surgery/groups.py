"""Which group a tensor belongs to, from the words in its name and its number of dimensions.

No table of architectures: the same words recur in all of them. A name without such a word gets no group,
since a wrong group would edit what the user did not mean.
"""

from __future__ import annotations

import re
from typing import Literal

Group = Literal["attention", "mlp", "norm", "embedding", "lm_head"]
GROUPS: tuple[Group, ...] = ("attention", "mlp", "norm", "embedding", "lm_head")

_NORM = re.compile(r"norm|(?:^|_)ln(?:_|\d|$)")
_BLOCK = re.compile(
    r"(?P<attention>attn|attention)"
    r"|(?P<mlp>mlp|ffn|feed_?forward|moe(?:_|$)|expert|router|denserelu|(?:^|_)ff(?:_|$)|^intermediate$)"
)
# Modules that stand in a layer without a block around them (OPT, BERT), or in one that has a neutral name
# (`mixer` of hybrid models, where Mamba's in_proj, x_proj, dt_proj and out_proj are in no group).
_ATTENTION_LEAF = re.compile(r"[qkvo]_proj|qkv(_proj)?|wqkv|w[qkv]|query_key_value|c_attn")
_MLP_LEAF = re.compile(r"(gate|up|down|gate_up)_proj|fc_?(1|2|in|out)|c_fc|w[123]|wi(_[01])?|dense_(h_to_4h|4h_to_h)")
_BUFFERS = frozenset({"inv_freq", "masked_bias", "position_ids", "num_batches_tracked"})
_EMBEDDING = re.compile(r"embed|^w[tp]e$|^shared$")
_HEAD = re.compile(r"lm_head|embed_out|output_layer")
_POSITION = re.compile(r"pos|type|wpe|segment|lang")
_TOKENS = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared", "token_embedding"}
)
_TOWER = re.compile(
    r"visi|visual|(?:^|_)vit(?:_|$)|imag|(?:^|_)img|audio|speech|video|siglip|clip|sam_|patch|conformer"
    r"|project|merger|adapter|resampler|qformer|perceiver|connector|(?:^|_)mtp(?:_|$)|talker|codec|token2wav"
)
_PREDICTOR = re.compile(r"^(eh_proj|enorm|hnorm|shared_head|embed_tokens)$")


def layer_group(inside: str, dimensions: int) -> Group | None:
    """Group of a tensor within a layer; `inside` is its name after the layer's index, `mlp.up_proj.weight`."""
    *modules, parameter = inside.lower().split(".")
    if parameter in _BUFFERS or dimensions > 3:  # four dimensions: a causal mask, kept as `attn.bias`
        return None
    if _is_norm(modules, parameter, dimensions):
        return "norm"
    path = [*modules, parameter]
    for component in path:
        matches = list(_BLOCK.finditer(component))
        if matches:  # of `cross_attn_mlp_gate` the last word counts
            return "attention" if matches[-1].lastgroup == "attention" else "mlp"
    leaf = modules[-1] if modules else parameter
    if _ATTENTION_LEAF.fullmatch(leaf):
        return "attention"
    if _MLP_LEAF.fullmatch(leaf) or path[:2] == ["output", "dense"]:
        return "mlp"
    return None


def outer_group(name: str, dimensions: int) -> Group | None:
    """Group of a tensor outside every stack."""
    *modules, parameter = name.lower().split(".")
    if parameter in _BUFFERS:
        return None
    if _is_norm(modules, parameter, dimensions):
        return "norm"
    if is_head(name):
        return "lm_head"
    return "embedding" if any(_EMBEDDING.search(component) for component in [*modules, parameter]) else None


def is_head(name: str) -> bool:
    """Whether the name says that this is an output head."""
    modules = name.lower().split(".")[:-1]
    return bool(modules) and bool(_HEAD.fullmatch(modules[-1]))


def is_tower(path: str) -> bool:
    """Whether a word in the path says vision, audio, projector or another part beside the text decoder."""
    return bool(_TOWER.search(path.lower().replace(".", "_")))


def is_predictor(inside: str) -> bool:
    """Whether a name within a layer is one that only multi-token-prediction layers have (DeepSeek-V3)."""
    return bool(_PREDICTOR.match(inside.split(".")[0]))


def token_rank(name: str) -> int | None:
    """How well a name outside the stacks says token embedding: 0 is best, None is not at all."""
    modules = name.lower().split(".")[:-1]
    if outer_group(name, 2) != "embedding" or not modules or is_tower(name):
        return None
    if modules[-1] in _TOKENS:
        return 0
    return None if _POSITION.search(modules[-1]) else 1


def _is_norm(modules: list[str], parameter: str, dimensions: int) -> bool:
    leaf = modules[-1] if modules else ""
    return (dimensions <= 2 and bool(_NORM.search(leaf))) or (dimensions == 1 and bool(_NORM.search(parameter)))
