"""What a checkpoint consists of, the layers of a stack counted together."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from surgery.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """Tensors that differ in the layer alone: `model.layers.{0-27}.mlp.up_proj.weight`."""

    pattern: str
    group: str | None
    shape: tuple[int, ...]
    dtype: str
    count: int
    parameters: int
    nbytes: int


def inventory(checkpoint: Checkpoint) -> list[ModuleRow]:
    """One row for each kind of tensor, in the checkpoint's order; `group` None: names and shapes do not tell."""
    anatomy = checkpoint.anatomy
    kinds: dict[tuple[str, str, tuple[int, ...], str], list[tuple[int, int]]] = {}
    for name, info in checkpoint.tensors.items():
        layer = anatomy.layer_of(name)
        prefix, rest = ("", name) if layer is None else (layer[0], name[len(f"{layer[0]}.{layer[1]}") :])
        key = (prefix, rest, info.shape, info.dtype.name)
        kinds.setdefault(key, []).append((-1 if layer is None else layer[1], info.nbytes))
    rows = []
    for (prefix, rest, shape, dtype), found in kinds.items():
        layers = sorted(layer for layer, _ in found)
        pattern = f"{prefix}.{{{_ranges(layers)}}}{rest}" if prefix else rest
        name = f"{prefix}.{layers[0]}{rest}" if prefix else rest
        nbytes = sum(size for _, size in found)
        rows.append(
            ModuleRow(pattern, anatomy.group_of(name), shape, dtype, len(found), prod(shape) * len(found), nbytes)
        )
    return rows


def _ranges(layers: list[int]) -> str:
    """`0-27` or `0-2,4-6`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
