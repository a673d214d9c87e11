from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from surgery.ops.wise_ft import WiseFt
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(19)
BASE, TUNED = (torch.randn(30, 20, generator=GENERATOR) for _ in range(2))
SOURCES = {"base": BASE, "sft": TUNED}


def wise_ft(**more: Any) -> WiseFt:
    return WiseFt.model_validate({"op": "wise_ft", "base": "base", "models": ["sft"], **more})


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("elements", [7, 600])
def test_equals_the_formula(alpha: float, elements: int):
    """The straight line between the models, in float64, whatever the pieces."""
    found = edited(wise_ft(alpha=alpha), BASE, SOURCES, elements=elements).double()
    assert torch.allclose(found, (1 - alpha) * BASE.double() + alpha * TUNED.double(), atol=1e-6)


def test_end_points():
    """alpha = 0 and alpha = 1 are the models, bit by bit; what is equal stays so; half way is the default."""
    assert torch.equal(edited(wise_ft(alpha=0), TUNED, SOURCES), BASE)
    assert torch.equal(edited(wise_ft(alpha=1), BASE, SOURCES), TUNED)
    assert torch.equal(edited(wise_ft(alpha=0.3), BASE, {"base": BASE, "sft": BASE}), BASE)
    assert wise_ft().alpha == 0.5


@pytest.mark.parametrize("alpha", [-0.1, [0, 1.5]])
def test_alpha_lies_between_the_models(alpha: Any):
    """Beyond them there is `linear`."""
    with pytest.raises(ValidationError, match="expected a number between 0 and 1"):
        wise_ft(alpha=alpha)
