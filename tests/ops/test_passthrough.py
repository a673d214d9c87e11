from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from surgery.ops.passthrough import Passthrough
from tests.ops.whole import edited

TENSOR = torch.randn(30, 20, generator=torch.Generator().manual_seed(23))


def passthrough(**more: Any) -> Passthrough:
    return Passthrough.model_validate({"op": "passthrough", "models": ["sft"], **more})


def test_without_a_scale_it_is_the_model():
    """Bit by bit, whatever the running tensor holds."""
    assert torch.equal(edited(passthrough(), torch.full_like(TENSOR, torch.nan), {"sft": TENSOR}, elements=7), TENSOR)
    assert not passthrough().uses_result


@pytest.mark.parametrize("scale", [0, -1.5, 0.3])
def test_scale(scale: float):
    """Every entry is multiplied."""
    found = edited(passthrough(scale=scale), TENSOR, {"sft": TENSOR}, elements=7)
    assert torch.allclose(found.double(), scale * TENSOR.double(), atol=1e-7)


def test_what_is_copied():
    """A model's own tensors are, as no arithmetic is needed; scaled ones and the running tensor are not."""
    assert passthrough().copies
    assert passthrough(scale=1).copies
    assert not passthrough(scale=2).copies
    assert not passthrough(models=["result"]).copies


def test_one_model_passes():
    """Two are refused."""
    with pytest.raises(ValidationError, match="found 2 models; `passthrough` merges one"):
        passthrough(models=["base", "sft"])
