from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.slerp import Slerp
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(3)
A, B = torch.randn(30, 20, generator=GENERATOR), torch.randn(30, 20, generator=GENERATOR)


def slerp(t: Any, models: tuple[str, ...] = ("a", "b")) -> Slerp:
    return Slerp.model_validate({"op": "slerp", "models": models, "t": t}, context={"roles": ("a", "b")})


def formula(t: float, a: Tensor, b: Tensor) -> Tensor:
    """In float64."""
    a, b = a.double(), b.double()
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("elements", [7, 600])
def test_equals_the_formula(t: float, elements: int):
    """Whatever the pieces, to the precision of float32."""
    found = edited(slerp(t), A, {"a": A, "b": B}, elements=elements)
    assert (found - formula(t, A, B)).norm() < 1e-6 * A.norm()


def test_the_end_points_are_the_models():
    """t = 0 and t = 1, to rounding."""
    assert torch.allclose(edited(slerp(0), B, {"a": A, "b": B}), A, atol=1e-7)
    assert torch.allclose(edited(slerp(1), A, {"a": A, "b": B}), B, atol=1e-7)


def test_symmetry():
    """From b to a by 1 - t is from a to b by t."""
    found = edited(slerp(0.3), A, {"a": A, "b": B})
    assert torch.allclose(found, edited(slerp(0.7, ("b", "a")), A, {"a": A, "b": B}), atol=1e-6)


def test_the_running_tensor_may_be_one_of_them():
    """`result` names it."""
    assert torch.equal(edited(slerp(0.3, ("result", "b")), A, {"b": B}), edited(slerp(0.3), A, {"a": A, "b": B}))


@pytest.mark.parametrize("other", [A.clone(), -A, 1.01 * A])
def test_without_an_angle_it_is_the_straight_line(other: Tensor):
    """Equal, opposite, and nearly parallel tensors."""
    found = edited(slerp(0.25), A, {"a": A, "b": other})
    assert torch.allclose(found, 0.75 * A + 0.25 * other, atol=1e-6)


def test_a_tensor_of_zeros_is_orthogonal():
    """So that what is left of the other falls as a cosine."""
    found = edited(slerp(0.25), A, {"a": A, "b": torch.zeros_like(A)})
    assert torch.allclose(found, math.cos(math.pi / 8) * A, atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"t": 1.5, "models": ["a", "b"]}, "found `1.5`; expected a number between 0 and 1"),
        ({"t": [0, 2], "models": ["a", "b"]}, "found `2.0`; expected a number between 0 and 1"),
        (
            {"t": "half", "models": ["a", "b"]},
            "found `half`; expected a number, a list of numbers that is interpolated",
        ),
        ({"t": 0.5, "models": []}, "found 0 models; `slerp` merges two"),
        ({"t": 0.5, "models": ["a"]}, "found 1 model; `slerp` merges two"),
        (
            {"t": 0.5, "models": ["a", "b", "c"]},
            "found 3 models; `slerp` merges two; a step after it can merge `result`",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(parameters: dict[str, Any], message: str):
    """Numbers out of range, words, and anything but two models."""
    with pytest.raises(ValidationError, match=message):
        Slerp.model_validate({"op": "slerp", **parameters}, context={"roles": ("a", "b")})
