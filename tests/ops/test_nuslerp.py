from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.nuslerp import NuSlerp
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(5)
A, B, C = (torch.randn(30, 20, generator=GENERATOR) for _ in range(3))
EACH = ("tensors", "rows", "columns")


def nuslerp(weights: Any = (1, 1), angles: str = "tensors", **more: Any) -> NuSlerp:
    step = {"op": "nuslerp", "models": ["a", "b"], "weights": list(weights), "angles": angles, **more}
    return NuSlerp.model_validate(step, context={"roles": ("a", "b", "base")})


def arc(t: float, v: Tensor, w: Tensor) -> Tensor:
    """The formula for two vectors, in float64."""
    v, w = v.double(), w.double()
    sizes = v.norm() * w.norm()
    cosine = (v @ w / sizes).clamp(-1, 1) if sizes > 0 else torch.tensor(0.0, dtype=torch.float64)
    if abs(cosine) == 1:
        return (1 - t) * v + t * w
    angle = torch.arccos(cosine)
    return (torch.sin((1 - t) * angle) * v + torch.sin(t * angle) * w) / torch.sin(angle)


def expected(t: float, a: Tensor, b: Tensor, angles: str) -> Tensor:
    if angles == "tensors" or a.ndim == 1:
        return arc(t, a.reshape(-1), b.reshape(-1)).reshape(a.shape)
    if angles == "columns":
        shape = (-1, a.shape[-1])
        return expected(t, a.reshape(shape).mT, b.reshape(shape).mT, "rows").mT.reshape(a.shape)
    flat = zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]), strict=True)
    return torch.stack([arc(t, v, w) for v, w in flat]).reshape(a.shape)


@pytest.mark.parametrize("angles", EACH)
@pytest.mark.parametrize("shape", [(30, 20), (3, 10, 20), (600,), (200, 3), ()])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_equals_the_formula(angles: str, shape: tuple[int, ...], rows: int):
    """For matrices, stacks, vectors and a number, with and without a base, whatever the pieces."""
    a, b, c = (X.reshape(-1)[: torch.Size(shape).numel()].reshape(shape) for X in (A, B, C))
    op = nuslerp((1, 3), angles)
    if shape:
        found = edited(op, a, {"a": a, "b": b}, rows=rows)
        assert torch.allclose(found.double(), expected(0.75, a, b, angles), atol=2e-5)
        found = edited(nuslerp((1, 3), angles, base="base"), a, {"a": a, "b": b, "base": c}, rows=rows)
        wanted = c.double() + expected(0.75, a - c, b - c, angles)
        assert torch.allclose(found.double(), wanted, atol=2e-5)
    else:
        found = edited(op, a.reshape(1), {"a": a.reshape(1), "b": b.reshape(1)})
        assert torch.allclose(found, 0.25 * a.reshape(1) + 0.75 * b.reshape(1))


@pytest.mark.parametrize("angles", EACH)
def test_the_end_points_are_the_models(angles: str):
    """A weight of 0 leaves the other model, to rounding; base and models alike give the base, bit by bit."""
    assert torch.allclose(edited(nuslerp((2, 0), angles), B, {"a": A, "b": B}), A, atol=1e-6)
    assert torch.allclose(edited(nuslerp((0, 2), angles), B, {"a": A, "b": B}), B, atol=1e-6)
    op = nuslerp((1, 2), angles, base="base")
    assert torch.equal(edited(op, B, {"a": A, "b": A, "base": A}), A)


@pytest.mark.parametrize("angles", EACH)
def test_lengths_on_the_sphere_stay(angles: str):
    """Vectors of length 1 give vectors of length 1."""
    dim = {"tensors": (0, 1), "rows": 1, "columns": 0}[angles]
    a, b = (X / X.norm(dim=dim, keepdim=True) for X in (A, B))
    found = edited(nuslerp((1, 3), angles), a, {"a": a, "b": b})
    assert torch.allclose(found.norm(dim=dim), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("angles", EACH)
@pytest.mark.parametrize("other", [A.clone(), -A, 3 * A, A + 1e-6])
def test_without_an_angle_it_is_the_straight_line(angles: str, other: Tensor):
    """Equal, opposite and parallel vectors."""
    found = edited(nuslerp((3, 1), angles), A, {"a": A, "b": other})
    assert torch.allclose(found, 0.75 * A + 0.25 * other, atol=1e-6)


@pytest.mark.parametrize("angles", EACH)
def test_a_vector_of_length_0_is_at_a_right_angle(angles: str):
    """Half way from 0 to v is sin(pi / 4) v; two of them give 0."""
    zero = torch.zeros_like(A)
    assert torch.allclose(edited(nuslerp((1, 1), angles), A, {"a": zero, "b": A}), A / 2**0.5, atol=1e-6)
    assert torch.equal(edited(nuslerp((1, 1), angles), A, {"a": zero, "b": zero}), zero)


@pytest.mark.parametrize("angles", EACH)
def test_float64_stays_float64(angles: str):
    """In which the formula holds to its precision."""
    a, b, c = A.double(), B.double(), C.double()
    found = edited(nuslerp((1, 3), angles, base="base"), a, {"a": a, "b": b, "base": c}, rows=7)
    assert found.dtype == torch.float64
    assert torch.allclose(found, c + expected(0.75, a - c, b - c, angles), atol=1e-12)


def test_rows_are_measured_as_they_come():
    """They take one pass, all else two."""
    assert [nuslerp(angles=angles).passes for angles in EACH] == [2, 1, 2]


def test_weights_count_by_their_shares():
    """A common factor changes nothing, and without weights they are equal."""
    sources = {"a": A, "b": B}
    assert torch.equal(edited(nuslerp((1, 3)), A, sources), edited(nuslerp((2, 6)), A, sources))
    plain = NuSlerp.model_validate({"op": "nuslerp", "models": ["a", "b"]})
    assert torch.equal(edited(plain, A, sources), edited(nuslerp((1, 1)), A, sources))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"weights": [1, -1]}, r"the weights \[1.0, -1.0\] sum to 0, and would be divided by that"),
        ({"weights": [1, 2, 3]}, "found 3 weights for 2 models"),
        ({"models": ["a", "b", "base"]}, "found 3 models; `nuslerp` merges two; a step after it can merge `result`"),
        ({"base": "a"}, "`a` is the base and among `models`"),
        ({"angles": "row"}, "Input should be 'tensors', 'rows' or 'columns'"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any], message: str):
    """Weights without shares, another number of models, a base among them."""
    with pytest.raises(ValidationError, match=message):
        nuslerp(**more)
