from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.consensus import Consensus
from surgery.ops.task_arithmetic import TaskArithmetic
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(13)
ROLES = ("x", "y", "z")
BASE = torch.randn(12, 11, generator=GENERATOR)
SOURCES = {"base": BASE} | {role: BASE + 0.1 * torch.randn(12, 11, generator=GENERATOR) ** 3 for role in ROLES}
CONTEXT = {"roles": ("base", *ROLES)}


def consensus(models: tuple[str, ...] = ROLES, **parameters: Any) -> Consensus:
    given = {"op": "consensus", "base": "base", "models": models, **parameters}
    return Consensus.model_validate(given, context=CONTEXT)


def formula(k: int, tall_lambda: float, factor: float) -> Tensor:
    """In float64, entry by entry."""
    columns = [(SOURCES[role] - BASE).double().flatten().tolist() for role in ROLES]
    result = BASE.double().flatten().clone()
    for p, entry in enumerate(zip(*columns, strict=True)):
        total = sum(entry)
        if sum(abs(d) >= tall_lambda * abs(total - d) for d in entry) >= k:
            result[p] += factor * total
    return result.view_as(BASE)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("tall_lambda", [0.2, 0.6, 1.0])
def test_equals_the_formula(k: int, tall_lambda: float):
    """In any pieces."""
    step = consensus(k=k, tall_lambda=tall_lambda, **{"lambda": 0.4})
    found = edited(step, BASE, SOURCES)
    assert (found - formula(k, tall_lambda, 0.4)).abs().max() < 1e-6
    assert torch.allclose(edited(step, BASE, SOURCES, elements=9), found, rtol=0, atol=3e-7)


@pytest.mark.parametrize("parameters", [{"k": 0}, {"tall_lambda": 0, "k": 3}])
def test_without_masks_it_is_task_arithmetic(parameters: dict[str, Any]):
    """No mask is asked for, or every mask is 1."""
    sum_ = TaskArithmetic.model_validate({"op": "task_arithmetic", "base": "base", "models": ROLES}, context=CONTEXT)
    assert torch.allclose(edited(consensus(**parameters), BASE, SOURCES), edited(sum_, BASE, SOURCES), atol=1e-6)


def test_one_model_is_the_result():
    """Its own sum is all of it."""
    assert torch.allclose(edited(consensus(("x",), k=1), BASE, SOURCES), SOURCES["x"], atol=1e-6)


def test_what_matters_to_one_alone_is_left_out():
    """With k = 2; and with k = 1 it is kept."""
    base = torch.zeros(3)
    sources = {"base": base, "x": torch.tensor([1.0, 1.0, 0.0]), "y": torch.tensor([0.0, 1.0, 0.0])}
    assert torch.equal(edited(consensus(("x", "y")), base, sources), torch.tensor([0.0, 2.0, 0.0]))
    assert torch.equal(edited(consensus(("x", "y"), k=1), base, sources), torch.tensor([1.0, 2.0, 0.0]))


def test_no_change_any_shape_any_order():
    """Models that are the base give the base; the order of models does not matter beyond rounding; NaN stays."""
    for W in (BASE, BASE[0], BASE.view(2, 6, 11), torch.zeros(0, 3)):
        assert torch.equal(edited(consensus(), W, dict.fromkeys(SOURCES, W)), W)
    forth, back = (edited(consensus(models), BASE, SOURCES) for models in (ROLES, ROLES[::-1]))
    assert torch.allclose(forth, back, rtol=0, atol=1e-6)
    broken = SOURCES["x"].clone()
    broken[2, 3] = torch.nan
    assert edited(consensus(), BASE, {**SOURCES, "x": broken}).isnan()[2, 3]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 4}, "found 3 models and `4` for `k`, so that no entry could be kept; name more"),
        ({"k": -1}, "greater than or equal to 0"),
        ({"tall_lambda": -1}, "found `-1.0`; expected 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters: dict[str, Any], message: str):
    """Numbers out of range."""
    with pytest.raises(ValidationError, match=message):
        consensus(**parameters)
