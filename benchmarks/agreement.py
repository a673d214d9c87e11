"""How far two merges of the same models are apart.

    python benchmarks/agreement.py THEIRS OURS BASE

Prints the share of entries that are more than one unit of bf16 apart, |ours - theirs| / |theirs - base|, and
|ours - base| / |theirs - base|.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def agreement(theirs: Path, ours: Path, base: Path) -> tuple[float, float, float]:
    """The share of entries that are more than one unit of bf16 apart, and, relative to |theirs - base|, |ours - theirs|
    and |ours - base|.
    """
    apart = entries = 0
    difference = change = own = 0.0
    found = dict(_tensors(ours))
    start = dict(_tensors(base))
    for name, read in _tensors(theirs):
        left, right, b = read(), found[name](), start[name]()
        steps = (_ordinal(left) - _ordinal(right)).abs()
        apart += int((steps > 1).sum())
        entries += steps.numel()
        difference += float((left.float() - right.float()).square().sum())
        change += float((left.float() - b.float()).square().sum())
        own += float((right.float() - b.float()).square().sum())
    return apart / entries, (difference / change) ** 0.5, (own / change) ** 0.5


def _ordinal(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of bf16, counted from the smallest."""
    bits = tensor.to(torch.bfloat16).view(torch.int16).int()
    return torch.where(bits < 0, -32768 - bits, bits)


def _tensors(model: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(model.glob("*.safetensors")):
        file = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            yield name, lambda file=file, name=name: file.get_tensor(name)


if __name__ == "__main__":
    print(*agreement(*map(Path, sys.argv[1:])))
