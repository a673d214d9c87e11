"""The memory that merges say they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from surgery.ops import Step
from surgery.ops.whole import Piece, Whole
from surgery.spectral.decomposer import Decomposer
from tests.spectral.test_cost import peak

STEP: TypeAdapter[Any] = TypeAdapter(Step)
ROLES = ("a", "b", "c", "base")
TWO, THREE = {"models": ["a", "b"]}, {"models": ["a", "b", "c"]}
SCALARS = 4096  # bytes: results of sums and products of k by k numbers


@pytest.mark.parametrize(
    "step",
    [
        {"op": "nuslerp", **TWO},
        {"op": "nuslerp", **TWO, "base": "base"},
        {"op": "nuslerp", **TWO, "angles": "rows"},
        {"op": "nuslerp", **TWO, "base": "base", "angles": "rows"},
        {"op": "nuslerp", **TWO, "base": "base", "angles": "columns"},
        {"op": "multislerp", **THREE},
        {"op": "karcher", **THREE, "base": "base"},
        {"op": "model_stock", **THREE, "base": "base"},
        {"op": "model_stock", **THREE, "base": "base", "filter_wise": True},
        {"op": "nearswap", "models": ["a"], "base": "base", "t": 0.1},
        {"op": "arcee_fusion", "models": ["a"], "base": "base"},
        {"op": "passthrough", "models": ["a"], "scale": 2},
        {"op": "wise_ft", "models": ["a"], "base": "base"},
        {"op": "lines", **TWO, "base": "base", "alpha": 0.5, "beta": 0.5, "depth": 0.5},
    ],
    ids=lambda step: " ".join(str(value) for value in step.values() if isinstance(value, str | bool)),
)
@pytest.mark.parametrize("shape", [(1024, 512), (65536, 8)])
def test_workspace_bounds_what_is_allocated(step: dict[str, Any], shape: tuple[int, int]):
    """Neither measuring nor editing one piece has more in torch tensors at once than `workspace` says, nor far less."""
    op = STEP.validate_python(step, context={"roles": ROLES})
    generator = torch.Generator().manual_seed(0)
    sources = {role: torch.randn(shape, generator=generator) for role in op.reads}
    if op.kind == "elementwise":
        sources = {role: source.reshape(-1) for role, source in sources.items()}
    piece = Piece(next(iter(sources.values())), sources, 0, Decomposer())
    whole = Whole("w", shape, lambda: iter([piece]))
    used = peak(lambda: op.prepare(whole)(piece))
    told = op.workspace(tuple(piece.W.shape))
    assert 0.2 * told < used < told + SCALARS
