from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.ops.emr import Emr
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(17)
ROLES = ("x", "y", "z")
BASE = torch.randn(12, 11, generator=GENERATOR)
SOURCES = {"base": BASE} | {role: BASE + 0.1 * torch.randn(12, 11, generator=GENERATOR) for role in ROLES}


def emr(models: tuple[str, ...] = ROLES, **parameters: Any) -> Emr:
    given = {"op": "emr", "base": "base", "models": models, **parameters}
    return Emr.model_validate(given, context={"roles": ("base", *ROLES)})


def formula(factor: float) -> Tensor:
    """In float64, entry by entry: of what has the sign of the sum, the largest."""
    columns = [(SOURCES[role] - BASE).double().flatten().tolist() for role in ROLES]
    result = BASE.double().flatten().clone()
    for p, entry in enumerate(zip(*columns, strict=True)):
        result[p] += factor * (max(entry) if sum(entry) > 0 else min(entry))
    return result.view_as(BASE)


@pytest.mark.parametrize("elements", [9, 1000])
def test_equals_the_formula(elements: int):
    """In any pieces."""
    found = edited(emr(**{"lambda": 1.5}), BASE, SOURCES, elements=elements)
    assert (found - formula(1.5)).abs().max() < 1e-6


def test_a_sum_of_0_elects_nothing():
    """Opposite changes cancel; one model has its own sign."""
    base = torch.zeros(4)
    sources = {"base": base, "x": torch.tensor([1.0, -2.0, 3.0, 0.0]), "y": torch.tensor([-1.0, -1.0, 1.0, 0.0])}
    assert torch.equal(edited(emr(("x", "y")), base, sources), torch.tensor([0.0, -2.0, 3.0, 0.0]))


def test_one_model_and_equal_models_are_the_result():
    """To rounding."""
    equal = {**dict.fromkeys(ROLES, SOURCES["x"]), "base": BASE}
    assert torch.allclose(edited(emr(("x",)), BASE, SOURCES), SOURCES["x"], atol=1e-6)
    assert torch.allclose(edited(emr(), BASE, equal), SOURCES["x"], atol=1e-6)


def test_no_change_any_shape_any_order():
    """Models that are the base give the base; the order of models does not matter; NaN stays."""
    for W in (BASE, BASE[0], BASE.view(2, 6, 11), torch.zeros(0, 3)):
        assert torch.equal(edited(emr(), W, dict.fromkeys(SOURCES, W)), W)
    assert torch.equal(edited(emr(), BASE, SOURCES), edited(emr(ROLES[::-1]), BASE, SOURCES))
    broken = SOURCES["x"].clone()
    broken[2, 3] = torch.nan
    assert edited(emr(), BASE, {**SOURCES, "x": broken}).isnan()[2, 3]
