"""Merges whose coefficients are measured: what is NaN or infinite in a model shows in the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from surgery.ops import Step
from tests.ops.whole import edited

STEP: TypeAdapter[Any] = TypeAdapter(Step)
TWO = {"models": ["a", "b"]}
GENERATOR = torch.Generator().manual_seed(31)
SOURCES = {role: torch.randn(8, 6, generator=GENERATOR) for role in ("a", "b", "base")}


@pytest.mark.parametrize(
    "step",
    [
        {"op": "slerp", **TWO, "t": 0},
        {"op": "nuslerp", **TWO, "weights": [1, 0]},
        {"op": "nuslerp", **TWO, "base": "base", "angles": "rows"},
        {"op": "nuslerp", **TWO, "base": "base", "angles": "columns"},
        {"op": "multislerp", **TWO, "weights": [1, 0]},
        {"op": "karcher", **TWO, "weights": [1, 0], "base": "base"},
        {"op": "model_stock", **TWO, "base": "base"},
        {"op": "model_stock", **TWO, "base": "base", "filter_wise": True},
        {"op": "wise_ft", "models": ["b"], "base": "base", "alpha": 0},
        {"op": "passthrough", "models": ["b"], "scale": 0},
    ],
    ids=lambda step: " ".join(map(str, step.values())),
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_values_are_in_the_result(step: dict[str, Any], value: float):
    """Even with a weight of 0, so that the executor finds them."""
    op = STEP.validate_python(step, context={"roles": tuple(SOURCES)})
    sources = {**SOURCES, "b": SOURCES["b"].clone()}
    sources["b"][3, 2] = value
    assert not edited(op, SOURCES["a"], sources).isfinite().all()


@pytest.mark.parametrize("role", ["a", "base"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_arcee_fusion_passes_over_no_broken_model(role: str, value: float):
    """Neither the one whose entries are taken nor the base whose entries stay."""
    op = STEP.validate_python(
        {"op": "arcee_fusion", "models": ["a"], "base": "base"}, context={"roles": tuple(SOURCES)}
    )
    sources = {**SOURCES, role: SOURCES[role].clone()}
    sources[role][3, 2] = value
    assert not edited(op, SOURCES["a"], sources).isfinite().all()
