"""The merges that sum task vectors, on three small models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgery.ops import OPS
from surgery.ops.base import Op
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(5)
BASE = torch.randn(40, 30, generator=GENERATOR)
MODELS = {name: BASE + 0.1 * torch.randn(40, 30, generator=GENERATOR) for name in ("x", "y", "z")}
SOURCES = {"base": BASE, **MODELS}
N = BASE.numel()

SUMS = (
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
)
SPARSE = SUMS[1:]
RANDOM = tuple(name for name in SUMS if name.startswith(("dare", "della")))
ELECTING = ("ties", "dare_ties", "breadcrumbs_ties", "della")


def op(name: str, **parameters: Any) -> Op:
    """With all three models unless told otherwise."""
    given = {"op": name, "base": "base", "models": ["x", "y", "z"], **parameters}
    return OPS[name].model_validate(given, context={"roles": ("base", "x", "y", "z")})


def made(
    name: str,
    sources: dict[str, Tensor] | None = None,
    *,
    elements: int = 1 << 19,
    rows: int = 1 << 19,
    **parameters: Any,
) -> Tensor:
    """The result of an operation."""
    sources = sources or SOURCES
    return edited(op(name, **parameters), sources["base"], sources, elements=elements, rows=rows)


def kept(name: str, role: str, **parameters: Any) -> Tensor:
    """Which entries of a task vector an operation keeps: those that it changes where this is the only one."""
    return made(name, models=[role], rescale=False, normalize=False, **parameters) != BASE
