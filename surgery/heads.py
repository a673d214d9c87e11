"""Value and output projections that belong together, where the space between them is free to rotate.

An attention head computes O V x for its input x, weighted over positions: for an orthogonal R, (O R, R^T V) is the
same map. That holds where nothing but the weighting stands between the two: no rotary embedding (queries and keys
have it, values do not), no activation, no clipping, no gate, no norm with weights, no other layer that uses the same
values. A module with a part that is not known to be harmless is taken for one where it does not hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from surgery.checkpoint import Checkpoint
from surgery.header import TensorInfo
from surgery.tying import TEXT_CONFIGS

Projection = Literal["value", "bias", "output"]

_VALUE = ("v_proj", "wv", "v")
_OUTPUT = ("o_proj", "out_proj", "wo", "o", "dense")
_QUERY = ("q_proj", "wq", "q")
_KEY = ("k_proj", "wk", "k")
_QUERY_NORMS = ("q_norm", "q_layernorm")
_NORMS = (*_QUERY_NORMS, "k_norm", "k_layernorm")
# Of positions, masks, and a logit without a value (GPT-OSS): they decide over the weights, not over what is weighted.
_OF_WEIGHTS = ("rotary_emb", "relative_attention_bias", "sinks", "bias", "masked_bias")
_HARMLESS = frozenset({*_VALUE, *_OUTPUT, *_QUERY, *_KEY, *_NORMS, *_OF_WEIGHTS})
_GATES = ("g_proj", "z_proj")
_DEPTH = 16  # components of a name that are looked at, a bound on hostile ones
_SETTINGS = {  # of a configuration, where they say yes or a number above 0
    "attn_output_gate": "a gate stands between them",
    "clip_qkv": "values are clipped",
    "num_kv_shared_layers": "several layers use the same values",
    "use_cla": "several layers use the same values",
}
_FUSED = ("qkv", "c_attn", "query_key_value", "w_pack", "in_proj")


@dataclass(frozen=True, slots=True)
class Heads:
    """The names of value projection (key_values head_dim rows), its bias, and output projection (queries head_dim
    columns) of an attention module. Query head j uses key/value head j // (queries / key_values).

    `counted` tells whether the configuration says how many heads there are, and not the shapes alone.
    """

    module: str
    value: str
    bias: str | None
    output: str
    head_dim: int
    key_values: int
    queries: int
    counted: bool

    @property
    def parts(self) -> Mapping[Projection, str]:
        """The tensors that turn together."""
        bias: dict[Projection, str] = {} if self.bias is None else {"bias": self.bias}
        return {"value": self.value, **bias, "output": self.output}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of a head, number of key/value heads, number of query heads."""
        return self.head_dim, self.key_values, self.queries

    def __str__(self) -> str:
        return f"{self.queries} query and {self.key_values} key/value heads of {self.head_dim}"


def find_heads(checkpoint: Checkpoint, names: Collection[str] | None = None) -> dict[str, Heads | str]:
    """Every module with a value and an output projection (both among `names`, where these are given), by name: its
    heads, or why they are not free to rotate.
    """
    found: dict[str, Heads | str] = {}
    known = checkpoint.tensors if names is None else names
    for module, children in _modules(checkpoint.tensors).items():
        value, output = (
            next((f"{module}.{leaf}.weight" for leaf in leaves if f"{module}.{leaf}.weight" in known), None)
            for leaves in (_VALUE, _OUTPUT)
        )
        if value and output and checkpoint.anatomy.layer_of(value) is not None:
            found[module] = _heads(checkpoint, module, children, value, output)
    return found


def why_not_apart(names: Sequence[str]) -> tuple[str, str]:
    """Of the matrices of an attention that is no module of `find_heads` the one that shows why, and the reason."""
    for name in names:
        leaf = name.lower().removesuffix(".weight").rpartition(".")[2]
        if any(word in leaf for word in _FUSED):
            return name, "its value projection is stored in one matrix with queries and keys (fused)"
        if leaf.startswith(("kv_a", "kv_b")):
            return name, "keys and values come from one latent vector (MLA)"
    return names[0], "no value and output projections are known to stand beside it"


_Children = Mapping[str, TensorInfo | None]  # of a module: the weight of each, or None where it is no module of its own


def _modules(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo | None]]:
    """The children of every module that has a value projection."""
    endings = tuple(f".{leaf}.weight" for leaf in _VALUE)
    modules: dict[str, dict[str, TensorInfo | None]] = {
        name.rsplit(".", 2)[0]: {} for name in tensors if name.endswith(endings)
    }
    for name, info in tensors.items():
        components = name.split(".", _DEPTH)
        for i in range(1, len(components)):
            children = modules.get(".".join(components[:i]))
            if children is not None:
                direct = components[i + 1 :] == ["weight"]
                children[components[i]] = info if direct else children.get(components[i])
    return modules


def _heads(checkpoint: Checkpoint, module: str, children: _Children, value: str, output: str) -> Heads | str:
    values, outputs = checkpoint.tensors[value], checkpoint.tensors[output]
    config = _text_config(checkpoint, module)
    head_dim = _head_dim(config, children)
    reason = _obstacle(config, children, values, outputs)
    if reason:
        return reason
    if head_dim is None:
        return "`config.json` does not tell the size of a head"
    key_values, queries = values.shape[0] // head_dim, outputs.shape[1] // head_dim
    if values.shape[0] % head_dim or outputs.shape[1] % head_dim or not key_values or queries % key_values:
        return f"heads of {head_dim} do not divide them"
    for key, number in (("num_attention_heads", queries), ("num_key_value_heads", key_values)):
        if _number(config, key) not in (None, number):
            return f"`config.json` says `{key}: {config[key]}`, and the shapes {number} heads of {head_dim}"
    bias = f"{value.removesuffix('.weight')}.bias"
    vector = checkpoint.tensors.get(bias)
    if vector is not None and vector.shape != values.shape[:1]:
        return f"the bias of the values is {list(vector.shape)}, where [{values.shape[0]}] is expected"
    counted = bool(_number(config, "num_attention_heads")) and (
        queries == key_values or bool(_number(config, "num_key_value_heads"))
    )
    return Heads(module, value, None if vector is None else bias, output, head_dim, key_values, queries, counted)


def _obstacle(config: Mapping[str, object], children: _Children, values: TensorInfo, outputs: TensorInfo) -> str | None:
    """Why the space between the projections is not free to rotate, or cannot be told; None where it is."""
    if len(values.shape) != 2 or len(outputs.shape) != 2:
        return "they are no plain matrices"
    queries = [info for leaf in _QUERY if (info := children.get(leaf)) is not None]
    if any(query.shape[0] != outputs.shape[1] for query in queries):
        return "the queries are not as wide as the input of the output projection (a gated attention?)"
    strange = [child for child in children if child not in _HARMLESS]
    if any("norm" in child for child in strange):
        return "a norm stands between them"
    if any("gate" in child or child in _GATES for child in strange):
        return "a gate stands between them"
    if strange:
        return f"what `{strange[0]}` beside them does is not known"
    return next((f"{why} (`{key}`)" for key, why in _SETTINGS.items() if config.get(key)), None)


def _text_config(checkpoint: Checkpoint, module: str) -> Mapping[str, object]:
    """The configuration of the language model; empty for another tower, whose lies elsewhere."""
    decoder, config = checkpoint.anatomy.decoder, checkpoint.config
    if decoder is None or not module.startswith(f"{decoder.prefix}."):
        return {}
    return next((nested for key in TEXT_CONFIGS if isinstance(nested := config.get(key), dict)), config)


def _head_dim(config: Mapping[str, object], children: _Children) -> int | None:
    """From the configuration, or from the norm of the queries where that is a head's; None where the two differ."""
    size = _number(config, "head_dim")
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    if size is None and hidden and heads:
        size = hidden // heads
    query = next((info for leaf in _QUERY if (info := children.get(leaf)) is not None), None)
    norm = next((info for leaf in _QUERY_NORMS if (info := children.get(leaf)) is not None), None)
    if norm is None or query is None or norm.shape[-1:] == query.shape[:1]:  # a norm of all heads together
        return size or None
    return norm.shape[-1] if size in (None, norm.shape[-1]) else None


def _number(config: Mapping[str, object], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
