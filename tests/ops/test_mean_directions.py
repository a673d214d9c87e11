"""multislerp and karcher: means of the directions of several models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.karcher import Karcher
from surgery.ops.merge import VectorOp
from surgery.ops.multislerp import MultiSlerp
from tests.ops.whole import edited

ROLES = ("a", "b", "c", "d", "base")
GENERATOR = torch.Generator().manual_seed(7)
MODELS = {role: torch.randn(6, 20, generator=GENERATOR) + 0.5 for role in ROLES}
W = MODELS["a"]


def op(name: str, models: tuple[str, ...] = ("a", "b", "c"), **more: Any) -> VectorOp:
    kind = {"multislerp": MultiSlerp, "karcher": Karcher}[name]
    return kind.model_validate({"op": name, "models": models, **more}, context={"roles": ROLES})


def multislerp(vectors: list[Tensor], weights: list[float]) -> Tensor:
    """As mergekit has it, the step in the tangent space included, in float64 and without its small constants."""
    flat = torch.stack([v.double().reshape(-1) for v in vectors])
    w = torch.tensor(weights, dtype=torch.float64)
    lengths = flat.norm(dim=1)
    units = flat / lengths[:, None]
    m = w @ units
    m = m / m.norm()
    tangent = w @ (units - (units @ m)[:, None] * m)
    size = tangent.norm() + 1e-30
    moved = torch.cos(size) * m + torch.sin(size) / size * tangent
    return ((w @ lengths) * moved).reshape(vectors[0].shape)


def karcher(vectors: list[Tensor], weights: list[float], max_iter: int, tol: float) -> Tensor:
    """The gradient descent on the tensors themselves, in float64."""
    flat = torch.stack([v.double().reshape(-1) for v in vectors])
    w = torch.tensor(weights, dtype=torch.float64)
    w = w / w.sum()
    lengths = flat.norm(dim=1)
    units = flat / lengths[:, None]
    m = w @ units / (w @ units).norm()
    for _ in range(max_iter):
        cosine = (units @ m).clamp(-1, 1)
        angle = cosine.arccos()
        factor = torch.where(angle > 0, angle / angle.sin(), 1.0)
        g = (w * factor) @ (units - cosine[:, None] * m)
        if g.norm() < tol:
            break
        m = g.norm().cos() * m + g.norm().sin() * g / g.norm()
        m = m / m.norm()
    return ((w @ lengths) * m).reshape(vectors[0].shape)


def expected(name: str, vectors: list[Tensor], weights: list[float], max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    if name == "karcher":
        return karcher(vectors, weights, max_iter, tol)
    return multislerp(vectors, [w / sum(weights) for w in weights])


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["multislerp", "karcher"]),
    st.lists(st.floats(0.1, 3), min_size=2, max_size=4),
    st.booleans(),
    st.integers(1, 150),
)
def test_equals_the_iteration_on_tensors(name: str, weights: list[float], based: bool, elements: int):
    """The arithmetic of a few coefficients gives what the formula on whole tensors does, with and without a base."""
    models = ROLES[: len(weights)]
    made = op(name, models, weights=weights, **({"base": "base"} if based else {}))
    found = edited(made, W, MODELS, elements=elements).double()
    b = MODELS["base"].double() if based else torch.zeros_like(W).double()
    wanted = b + expected(name, [MODELS[role] - b for role in models], weights)
    assert torch.allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("max_iter", [0, 1])
def test_karcher_stops_when_told(max_iter: int):
    """After so many steps, each of which is that of the iteration on tensors; or once a step is short."""
    vectors = [MODELS[role] - 0.5 for role in "abc"]  # nearly orthogonal: far from where it starts
    vectors[0] = 4 * vectors[1] + vectors[0]
    sources = dict(zip("abc", vectors, strict=True))
    weights = [1.0, 2.0, 3.0]
    found = edited(op("karcher", weights=weights, max_iter=max_iter), W, sources).double()
    assert torch.allclose(found, karcher(vectors, weights, max_iter, 1e-5), atol=1e-5)
    assert not torch.allclose(found, karcher(vectors, weights, 100, 1e-12), atol=1e-4)
    short = edited(op("karcher", weights=weights, tol=3.0), W, sources).double()
    assert torch.allclose(short, karcher(vectors, weights, 0, 1e-5), atol=1e-5)


def test_karcher_of_two_is_half_way_on_the_arc():
    """Equal weights and lengths: the same as multislerp and nuslerp at 1/2; unequal ones divide the arc."""
    a, b = (MODELS[role] / MODELS[role].norm() for role in "ab")
    sources = {"a": a, "b": b}
    half = edited(op("karcher", ("a", "b")), W, sources)
    assert torch.allclose(half, edited(op("multislerp", ("a", "b")), W, sources), atol=1e-6)
    angle = torch.arccos((a * b).sum())
    quarter = edited(op("karcher", ("a", "b"), weights=[3, 1], max_iter=100, tol=1e-9), W, sources)
    arc = (torch.sin(0.75 * angle) * a + torch.sin(0.25 * angle) * b) / torch.sin(angle)
    assert torch.allclose(quarter, arc, atol=1e-5)


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_what_is_equal_stays(name: str):
    """Equal models give that model, to rounding; models like their base give the base, bit by bit."""
    same = dict.fromkeys(ROLES, W)
    assert torch.allclose(edited(op(name), W, same), W, atol=1e-5)
    assert torch.equal(edited(op(name, base="base"), W, same), W)
    zero = dict.fromkeys(ROLES, torch.zeros_like(W))
    assert torch.equal(edited(op(name), W, zero), torch.zeros_like(W))


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_the_order_of_models_does_not_matter(name: str):
    """Nor does a common factor of the weights, or of the tensors, which it scales."""
    found = edited(op(name, weights=[1, 2, 3]), W, MODELS)
    assert torch.allclose(found, edited(op(name, ("c", "a", "b"), weights=[6, 2, 4]), W, MODELS), atol=1e-5)
    scaled = {role: 1000 * X for role, X in MODELS.items()}
    assert torch.allclose(1000 * found, edited(op(name, weights=[1, 2, 3]), W, scaled), atol=1e-2)


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_a_vector_of_length_0_has_no_direction(name: str):
    """It shortens the result and does not turn it."""
    sources = {**MODELS, "c": torch.zeros_like(W)}
    found = edited(op(name), W, sources)
    two = edited(op(name, ("a", "b")), W, sources)
    assert torch.allclose(found, two * 2 / 3, atol=1e-5)


def test_directions_that_cancel():
    """multislerp takes the straight line, karcher goes from the first model, and is finite beside its opposite."""
    a, b = W, -2 * W
    sources = {"a": a, "b": b}
    assert torch.allclose(edited(op("multislerp", ("a", "b")), W, sources), (a + b) / 2, atol=1e-6)
    assert torch.allclose(edited(op("karcher", ("a", "b")), W, sources), 1.5 * a, atol=1e-5)
    sources["b"] = b + 1e-3 * MODELS["d"]
    assert torch.allclose(edited(op("karcher", ("a", "b")), W, sources), 1.5 * a, atol=1e-2)


def test_without_normalisation_the_weights_are_factors():
    """Twice the weights: twice the length."""
    once = edited(op("multislerp", weights=[0.2, 0.3, 0.5], normalize=False), W, MODELS)
    twice = edited(op("multislerp", weights=[0.4, 0.6, 1.0], normalize=False), W, MODELS)
    assert torch.allclose(once, edited(op("multislerp", weights=[2, 3, 5]), W, MODELS), atol=1e-5)
    assert torch.allclose(twice, 2 * once, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("multislerp", {"models": ["a"]}, "found 1 model; `multislerp` merges two or more"),
        ("karcher", {"models": ["a"]}, "found 1 model; `karcher` merges two or more"),
        ("multislerp", {"weights": [1, 1, -2]}, "sum to 0, and would be divided by that"),
        ("karcher", {"weights": [1, 1, -1]}, "found `-1.0`; expected 0 or more"),
        ("karcher", {"weights": 0}, r"the weights \[0.0, 0.0, 0.0\] sum to 0"),
        ("karcher", {"max_iter": -1}, "greater than or equal to 0"),
        ("karcher", {"tol": 0}, "greater than 0"),
        ("multislerp", {"base": "c"}, "`c` is the base and among `models`"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, more: dict[str, Any], message: str):
    """One model, weights without shares, negative ones for karcher, which is a minimum."""
    with pytest.raises(ValidationError, match=message):
        op(name, **more)
