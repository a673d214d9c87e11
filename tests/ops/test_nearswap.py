from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from surgery.ops.nearswap import NearSwap
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(17)
BASE = torch.randn(30, 20, generator=GENERATOR)
OTHER = BASE + 0.1 * torch.randn(30, 20, generator=GENERATOR)
SOURCES = {"base": BASE, "other": OTHER}


def nearswap(t: Any, models: tuple[str, ...] = ("other",)) -> NearSwap:
    step = {"op": "nearswap", "base": "base", "models": models, "t": t}
    return NearSwap.model_validate(step, context={"roles": ("base", "other", "third")})


@given(st.floats(1e-6, 0.5), st.integers(1, 700))
def test_equals_the_formula(t: float, elements: int):
    """b + w d with w = min(1, t / |d|), in float64, whatever the pieces; no entry moves by more than t."""
    b, d = BASE.double(), OTHER.double() - BASE.double()
    weight = (t / d.abs().clamp(min=1e-6)).clamp(max=1)
    found = edited(nearswap(t), OTHER, SOURCES, elements=elements)
    assert torch.allclose(found.double(), b + weight * d, atol=1e-6)
    assert (found - BASE).abs().max() <= t + 1e-6


def test_end_points():
    """t = 0 is the base, a large t the other model, bit by bit."""
    assert torch.equal(edited(nearswap(0), OTHER, SOURCES), BASE)
    assert torch.equal(edited(nearswap(1), BASE, SOURCES), OTHER)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_values_are_not_dropped(value: float):
    """They are in the result, where the executor finds them."""
    broken = OTHER.clone()
    broken[0, 5] = value
    assert not edited(nearswap(0.1), BASE, {"base": BASE, "other": broken}).isfinite().all()


def test_steps_below_a_millionth():
    """They are taken as they are."""
    zero, one = torch.zeros(4), torch.tensor([1e-7, -1e-7, 1e-9, 0.5])
    found = edited(nearswap(1e-8), zero, {"base": zero, "other": one})
    assert torch.allclose(found, torch.tensor([1e-8, -1e-8, 1e-9, 1e-8]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("t", "models", "message"),
    [
        (-0.1, ("other",), "found `-0.1`; expected 0 or more"),
        ([0.1, -1], ("other",), "found `-1.0`; expected 0 or more"),
        (0.1, ("other", "third"), "found 2 models; `nearswap` merges one, beside `base`"),
        (0.1, ("base",), "`base` is the base and among `models`"),
    ],
)
def test_what_makes_no_sense_is_refused(t: Any, models: tuple[str, ...], message: str):
    """Steps below 0, and anything but one other model."""
    with pytest.raises(ValidationError, match=message):
        nearswap(t, models)
