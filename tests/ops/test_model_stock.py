from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.model_stock import ModelStock
from tests.ops.whole import edited

ROLES = ("base", "a", "b", "c")
GENERATOR = torch.Generator().manual_seed(11)
BASE, COMMON = (torch.randn(12, 20, generator=GENERATOR) for _ in range(2))
MODELS = {
    "base": BASE,
    **{role: BASE + 0.01 * (COMMON + torch.randn(12, 20, generator=GENERATOR)) for role in ROLES[1:]},
}


def stock(models: tuple[str, ...] = ("a", "b", "c"), **more: Any) -> ModelStock:
    step = {"op": "model_stock", "base": "base", "models": models, **more}
    return ModelStock.model_validate(step, context={"roles": ROLES})


def formula(b: Tensor, models: list[Tensor]) -> Tensor:
    """For vectors, in float64."""
    b, W = b.double(), [X.double() for X in models]
    k = len(W)
    cosines = [(x - b) @ (y - b) / ((x - b).norm() * (y - b).norm()) for x, y in combinations(W, 2)]
    cosine = sum(cosines) / len(cosines)
    t = k * cosine / (1 + (k - 1) * cosine)
    return t * sum(W) / k + (1 - t) * b


def expected(sources: dict[str, Tensor], models: tuple[str, ...], filter_wise: bool) -> Tensor:
    b = sources["base"]
    width = b.shape[-1] if filter_wise else b.numel()
    flat = {role: X.reshape(-1, width) for role, X in sources.items()}
    rows = [formula(flat["base"][i], [flat[role][i] for role in models]) for i in range(len(flat["base"]))]
    return torch.stack(rows).reshape(b.shape)


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("models", [("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("shape", [(12, 20), (3, 4, 20), (240,)])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_equals_the_formula(filter_wise: bool, models: tuple[str, ...], shape: tuple[int, ...], rows: int):
    """Of two and three models, of matrices, stacks and vectors, whatever the pieces."""
    sources = {role: X.reshape(shape) for role, X in MODELS.items()}
    found = edited(stock(models, filter_wise=filter_wise), sources["base"], sources, rows=rows)
    assert torch.allclose(found.double(), expected(sources, models, filter_wise), atol=1e-6)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_ends(filter_wise: bool):
    """Equal models give that model; orthogonal task vectors, and models that are the base, give the base."""
    op = stock(("a", "b"), filter_wise=filter_wise)
    same = {**MODELS, "b": MODELS["a"]}
    assert torch.allclose(edited(op, BASE, same), MODELS["a"], atol=1e-6)
    left = torch.zeros_like(BASE)
    left[:, :10] = 1
    apart = {"base": BASE, "a": BASE + left, "b": BASE + 1 - left}
    assert torch.allclose(edited(op, BASE, apart), BASE, atol=1e-6)
    assert torch.equal(edited(op, BASE, dict.fromkeys(ROLES, BASE)), BASE)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_opposite_task_vectors_give_the_base(filter_wise: bool):
    """t has a pole there."""
    zero = torch.zeros_like(BASE)
    sources = {"base": zero, "a": COMMON, "b": -COMMON}
    assert torch.equal(edited(stock(("a", "b"), filter_wise=filter_wise), zero, sources), zero)


def test_t_does_not_depend_on_the_length():
    """Task vectors a million times shorter are merged alike."""
    zero = torch.zeros_like(BASE)
    long = {"base": zero, **{role: MODELS[role] - BASE for role in "abc"}}
    short = {role: 1e-6 * X for role, X in long.items()}
    assert torch.allclose(1e-6 * edited(stock(), zero, long), edited(stock(), zero, short), atol=1e-13)


def test_the_order_of_models_does_not_matter():
    """To rounding."""
    found = edited(stock(), BASE, MODELS)
    assert torch.allclose(found, edited(stock(("c", "a", "b")), BASE, MODELS), atol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"models": ["a"]}, "found 1 model; `model_stock` merges two or more, beside `base`"),
        ({"base": "c"}, "`c` is the base and among `models`"),
        ({"base": None}, "base"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any], message: str):
    """One model has no angle; without a base there are none."""
    with pytest.raises(ValidationError, match=message):
        stock(**more)
