"""Layers without keys and values of their own: the last ones of Gemma 3n and 4, `num_kv_shared_layers` in the config.

Each of them attends to those of the last layer before them all that has the same entry in `layer_types` (transformers,
`modeling_gemma3n.py`). For other layers the number follows, where that says what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.wording import numbered

SHARED = "num_kv_shared_layers"


@dataclass(frozen=True, slots=True)
class Sharing:
    """How many of the new layers share, a fault, and a remark; the latter two where there is something to say."""

    count: int
    fault: str | None = None
    remark: str | None = None


def sharing(layers: Sequence[tuple[Mapping[str, Any], int, int]]) -> Sharing:
    """Of the new layers, each with the config that it comes from, the number of layers there, and which one it was.

    A fault where a layer that shares would come before one that does not, or none is left whose keys it could take.
    """
    shares = [layer >= first_of(config, n) for config, n, layer in layers]
    if shares != sorted(shares):
        fault = "a layer without keys of its own comes before one that has some; keep them in order, those at the end"
        return Sharing(0, fault=f"`{SHARED}`: {fault}")
    count = sum(shares)
    own = layers[: len(layers) - count]
    changed = 0
    for config, n, layer in layers[len(layers) - count :]:
        kind = _kind(config, layer)
        before = [i for i in range(first_of(config, n)) if _kind(config, i) == kind]
        now = [(each, i) for each, _, i in own if _kind(each, i) == kind]
        if before and not now:
            fault = f"no layer{'' if kind is None else f' of the kind `{kind}`'} is left whose keys others could take"
            return Sharing(count, fault=f"`{SHARED}`: {fault}; keep one")
        changed += bool(before) and now[-1] != (config, before[-1])
    if not changed:
        return Sharing(count)
    take = f"{numbered(changed, 'layer')} {'takes' if changed == 1 else 'take'}"
    return Sharing(count, remark=f"`{SHARED}`: {take} keys and values of another layer than before; check it")


def first_of(config: Mapping[str, Any], layers: int) -> int:
    """The first layer of a model that shares; the number of layers where none does."""
    count = config.get(SHARED)
    return layers - count if type(count) is int and 0 < count < layers else layers


def _kind(config: Mapping[str, Any], layer: int) -> object:
    kinds = config.get("layer_types")
    return kinds[layer] if isinstance(kinds, list) and layer < len(kinds) else None
