from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops import OPS
from surgery.ops.base import Op
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(11)
ROLES = ("x", "y", "z")
BASE = torch.randn(16, 9, generator=GENERATOR)


def _sparse(share: float) -> Tensor:
    """The base, changed in a share of the entries, and in the others by less than counts as a change."""
    change = 0.01 * torch.randn(16, 9, generator=GENERATOR)
    return BASE + torch.where(torch.rand(16, 9, generator=GENERATOR) < share, change, 1e-7 * change)


SOURCES = {"base": BASE} | {role: _sparse(share) for role, share in zip(ROLES, (0.2, 0.4, 0.6), strict=True)}


def ram(name: str = "ram", models: tuple[str, ...] = ROLES, **parameters: Any) -> Op:
    given = {"op": name, "base": "base", "models": models, **parameters}
    return OPS[name].model_validate(given, context={"roles": ("base", *ROLES)})


def formula(epsilons: list[float], r: float = 0, alpha: float = 0) -> Tensor:
    """In float64, entry by entry."""
    columns = [(SOURCES[role] - BASE).double().flatten().tolist() for role in ROLES]
    entries = list(zip(*columns, strict=True))
    who = [[i for i, d in enumerate(entry) if abs(d) > epsilons[i]] for entry in entries]
    factors = []
    for i in range(len(ROLES)):
        alone = sum(each == [i] for each in who)
        shared = sum(i in each and len(each) > 1 for each in who)
        factors.append(1 + r * min(shared / alone, alpha))
    result = BASE.double().flatten().clone()
    for p, each in enumerate(who):
        if len(each) == 1:
            result[p] += factors[each[0]] * entries[p][each[0]]
        elif each:
            result[p] += sum(entries[p][i] for i in each) / len(each)
    return result.view_as(BASE)


@pytest.mark.parametrize("elements", [10, 1000])
@pytest.mark.parametrize("epsilon", [1e-5, [1e-3, 1e-5, 5e-3]])
def test_equals_the_formula(epsilon: Any, elements: int):
    """In any pieces; `epsilon` is one a model."""
    epsilons = epsilon if isinstance(epsilon, list) else [epsilon] * 3
    found = edited(ram(epsilon=epsilon), BASE, SOURCES, elements=elements)
    assert (found - formula(epsilons)).abs().max() < 3e-7
    found = edited(ram("ramplus_tl", epsilon=epsilon, r=0.5, alpha=2), BASE, SOURCES, elements=elements)
    assert (found - formula(epsilons, 0.5, 2)).abs().max() < 3e-7


def test_defaults():
    """Those of mergekit 0.1.5 and of the paper."""
    step = ram("ramplus_tl")
    assert (step.epsilon, step.r, step.alpha) == ((1e-5,) * 3, 0.1, 0.2)


@pytest.mark.parametrize("parameters", [{"r": 0}, {"alpha": 0}])
def test_without_a_factor_it_is_ram(parameters: dict[str, float]):
    """r = 0 or alpha = 0."""
    assert torch.equal(edited(ram("ramplus_tl", **parameters), BASE, SOURCES), edited(ram(), BASE, SOURCES))


@pytest.mark.parametrize("name", ["ram", "ramplus_tl"])
def test_one_model_is_the_result(name: str):
    """Where it changed; nothing is shared, so nothing is multiplied."""
    found = edited(ram(name, ("x",)), BASE, SOURCES)
    assert torch.allclose(found, SOURCES["x"], rtol=0, atol=1e-6)
    assert torch.equal(found == BASE, (SOURCES["x"] - BASE).abs() <= 1e-5)


@pytest.mark.parametrize("name", ["ram", "ramplus_tl"])
def test_equal_models_are_the_result(name: str):
    """All of it is shared: their mean."""
    found = edited(ram(name), BASE, {**dict.fromkeys(ROLES, SOURCES["y"]), "base": BASE})
    assert torch.allclose(found, SOURCES["y"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ram", "ramplus_tl"])
def test_no_change_and_any_shape(name: str):
    """Models that are the base give the base: vectors, stacks, an empty tensor."""
    for W in (BASE, BASE[0], BASE.view(2, 8, 9), torch.zeros(0, 3)):
        assert torch.equal(edited(ram(name), W, dict.fromkeys(SOURCES, W)), W)


@pytest.mark.parametrize("name", ["ram", "ramplus_tl"])
def test_order_and_nan(name: str):
    """The order of models matters to rounding only; NaN stays."""
    forth, back = (edited(ram(name, models), BASE, SOURCES) for models in (ROLES, ROLES[::-1]))
    assert torch.allclose(forth, back, rtol=0, atol=1e-6)
    broken = SOURCES["x"].clone()
    broken[2, 3] = torch.nan
    assert edited(ram(name), BASE, {**SOURCES, "x": broken}).isnan()[2, 3]


@pytest.mark.parametrize("parameters", [{"epsilon": -1}, {"r": -0.1}, {"alpha": -0.1}])
def test_out_of_range(parameters: dict[str, float]):
    """None of them may be negative."""
    with pytest.raises(ValidationError, match="expected 0 or more"):
        ram("ramplus_tl", **parameters)
