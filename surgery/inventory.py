"""What a checkpoint consists of, the layers of a stack counted together."""

from __future__ import annotations

import re
from dataclasses import dataclass

from surgery.checkpoint import Checkpoint
from surgery.header import TensorInfo

_INTEGER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", re.ASCII)  # a component of a name
_HOLE = "\0"  # no name holds it


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """Tensors that differ in layer and expert alone: `model.layers.{0-27}.mlp.experts.{0-7}.w1.weight`."""

    pattern: str
    group: str | None
    shape: tuple[int, ...]
    dtype: str
    count: int
    parameters: int
    nbytes: int


def inventory(checkpoint: Checkpoint) -> list[ModuleRow]:
    """One row for each kind of tensor, in the checkpoint's order; `group` None: names and shapes do not tell."""
    kinds: dict[tuple[str, str | None, tuple[int, ...], str], list[TensorInfo]] = {}
    for name, info in checkpoint.tensors.items():
        folded = checkpoint.anatomy.layer_of(name) is not None
        pattern = _INTEGER.sub(_HOLE, name) if folded else name
        kinds.setdefault((pattern, checkpoint.anatomy.group_of(name), info.shape, info.dtype.name), []).append(info)
    return [
        ModuleRow(
            pattern=_filled(pattern, [info.name for info in found]),
            group=group,
            shape=shape,
            dtype=dtype,
            count=len(found),
            parameters=sum(info.elements for info in found),
            nbytes=sum(info.nbytes for info in found),
        )
        for (pattern, group, shape, dtype), found in kinds.items()
    ]


def _filled(pattern: str, names: list[str]) -> str:
    """The pattern with the numbers that its holes stand for."""
    numbers = zip(*(map(int, _INTEGER.findall(name)) for name in names), strict=True)
    for column in numbers if _HOLE in pattern else ():
        pattern = pattern.replace(_HOLE, f"{{{_ranges(sorted(set(column)))}}}", 1)
    return pattern


def _ranges(layers: list[int]) -> str:
    """`0-27` or `0-2,4-6`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
