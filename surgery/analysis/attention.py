"""Value and output projections that belong together, where the space between them is free to rotate.

An attention head computes O V x for its input x, weighted over positions: for an orthogonal R, (O R, R^T V) is the
same map. That holds where nothing but the weighting stands between the two: no rotary embedding (queries and keys
have it, values do not), no activation, no gate, no norm with weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from surgery.checkpoint import Checkpoint
from surgery.header import TensorInfo

_VALUE = ("v_proj", "wv", "v")
_OUTPUT = ("o_proj", "out_proj", "wo", "o", "dense")
_QUERY = ("q_proj", "wq", "q")
_GATES = ("g_proj", "z_proj")
_HARMLESS_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")  # of queries and keys
# Where configurations of multimodal models keep that of the language model.
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class Attention:
    """Value (kv heads x head_dim rows) and output projection (heads x head_dim columns) of one layer, in all models."""

    name: str
    stack: str
    layer: int
    head_dim: int
    value: Mapping[str, TensorInfo]
    bias: Mapping[str, TensorInfo]  # of those models that have one
    output: Mapping[str, TensorInfo]

    def tensors(self) -> Iterator[TensorInfo]:
        """All that is read."""
        for infos in (self.value, self.bias, self.output):
            yield from infos.values()

    @property
    def module(self) -> str:
        """The name within the layer: `self_attn`."""
        return self.name.removeprefix(f"{self.stack}.{self.layer}.")

    @property
    def chance(self) -> float:
        """The share of a small change at random that a rotation explains: (head_dim - 1) / 2 degrees of freedom for
        each of the head_dim dimensions, of the weights that meet in one of them.
        """
        value, output = (next(iter(infos.values())) for infos in (self.value, self.output))
        group = output.shape[1] // value.shape[0]
        return (self.head_dim - 1) / 2 / (value.shape[1] + group * output.shape[0])

    @property
    def memory(self) -> int:
        """Upper bound of the bytes that a worker holds: all models' projections, and one head's in float64."""
        elements = sum(info.elements for info in self.tensors())
        rows = sum(next(iter(infos.values())).shape[i] for infos, i in ((self.value, 1), (self.output, 0)))
        widest = max(info.stored.dtype.bits // 8 for info in self.tensors())
        adapters = sum(info.adapted.memory(info.shape) for info in self.tensors() if info.adapted)
        group = next(iter(self.output.values())).shape[1] * self.head_dim // self._value_rows
        return elements * max(4, widest) * 2 + 8 * 8 * (rows * group + self.head_dim**2) + adapters

    @property
    def flops(self) -> int:
        """Floating-point operations, to first order."""
        return sum(8 * info.elements * self.head_dim for info in self.tensors())

    @property
    def _value_rows(self) -> int:
        return next(iter(self.value.values())).shape[0]


def find_attentions(
    models: Mapping[str, Checkpoint], names: Collection[str]
) -> tuple[tuple[Attention, ...], tuple[str, ...]]:
    """The attention modules both of whose projections are among `names`, and why others are left out."""
    base = next(iter(models.values()))
    leaves: dict[str, dict[str, TensorInfo]] = {}  # of every module: the weights below it
    for name, info in base.tensors.items():
        parent, leaf = _split(name)
        leaves.setdefault(parent, {})[leaf] = info
    found: list[Attention] = []
    skipped: dict[str, None] = {}
    for parent, weights in leaves.items():
        value, output = (_one_of(candidates, weights, parent, names) for candidates in (_VALUE, _OUTPUT))
        place = base.anatomy.layer_of(f"{parent}.{value}.weight")
        if value is None or output is None or place is None:
            continue
        head_dim = _head_dim(base, parent, weights)
        reason = _no_gauge(weights, weights[value], weights[output], head_dim)
        if reason:
            skipped[reason] = None
            continue
        assert head_dim is not None
        infos = [
            {model: checkpoint.tensors[name] for model, checkpoint in models.items() if name in checkpoint.tensors}
            for name in (f"{parent}.{value}.weight", f"{parent}.{value}.bias", f"{parent}.{output}.weight")
        ]
        found.append(Attention(parent, *place, head_dim, *infos))
    if not found and not skipped and any(base.anatomy.group_of(name) == "attention" for name in names):
        skipped["the gauge is not measured: there are no separate value and output projections"] = None
    return tuple(found), tuple(skipped)


def _split(name: str) -> tuple[str, str]:
    """`model.layers.0.self_attn` and `v_proj` of a weight's name."""
    parent, _, leaf = name.removesuffix(".weight").rpartition(".")
    return parent, leaf


def _one_of(
    candidates: Collection[str], weights: Mapping[str, TensorInfo], parent: str, names: Collection[str]
) -> str | None:
    return next((leaf for leaf in candidates if leaf in weights and f"{parent}.{leaf}.weight" in names), None)


def _no_gauge(
    weights: Mapping[str, TensorInfo], value: TensorInfo, output: TensorInfo, head_dim: int | None
) -> str | None:
    """Why the space between the projections is not free to rotate, or cannot be told; None where it is."""
    why = "the gauge of value and output projections is not measured: "
    if len(value.shape) != 2 or len(output.shape) != 2:
        return why + "they are no plain matrices"
    queries = [weights[leaf] for leaf in _QUERY if leaf in weights]
    if any(query.shape[0] != output.shape[1] for query in queries):
        return why + "the queries are not as wide as the input of the output projection (a gated attention?)"
    if any("norm" in leaf and leaf not in _HARMLESS_NORMS for leaf in weights):
        return why + "a norm stands between them"
    if any("gate" in leaf or leaf in _GATES for leaf in weights):
        return why + "a gate stands between them"
    if head_dim is None:
        return why + "`config.json` does not tell the size of a head"
    heads, key_values = output.shape[1] // head_dim, value.shape[0] // head_dim
    if value.shape[0] % head_dim or output.shape[1] % head_dim or not key_values or heads % key_values:
        return why + f"heads of {head_dim} do not divide them"
    return None


def _head_dim(base: Checkpoint, parent: str, weights: Mapping[str, TensorInfo]) -> int | None:
    """From the configuration of the language model, or from the norm of the queries where that is a head's."""
    decoder = base.anatomy.decoder
    if decoder is None or not parent.startswith(f"{decoder.prefix}."):
        return None  # the configuration of another tower lies elsewhere
    config = next((nested for key in _TEXT_CONFIGS if isinstance(nested := base.config.get(key), dict)), base.config)
    size, hidden, heads = (config.get(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if isinstance(size, int) and size > 0:
        return size
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        return hidden // heads
    norm = weights.get("q_norm")
    return norm.shape[0] if norm is not None and len(norm.shape) == 1 else None
