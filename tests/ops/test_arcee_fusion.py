from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.arcee_fusion import ArceeFusion, row_divergences
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(13)
BASE, CHANGE = (torch.randn(40, 30, generator=GENERATOR) for _ in range(2))
SCALE = torch.logspace(-3, 0, 40).unsqueeze(1)  # rows that changed little, and much
TUNED = BASE + SCALE * CHANGE
OP = ArceeFusion.model_validate({"op": "arcee_fusion", "base": "b", "models": ["w"]}, context={"roles": ("b", "w")})


def expected(b: Tensor, W: Tensor) -> Tensor:
    """As published, in float64, with all scores sorted."""
    b, W = b.double(), W.double()
    p, q = torch.softmax(W, -1), torch.softmax(b, -1)
    scores = (W - b).abs() * (p * torch.log(p / q)).sum(-1, keepdim=True)
    ordered = scores.reshape(-1).sort().values
    q1, median, q3 = (ordered[int(k * (len(ordered) - 1) / 4)] for k in (1, 2, 3))
    return torch.where(scores >= median + 1.5 * (q3 - q1), W, b)


@pytest.mark.parametrize("shape", [(40, 30), (4, 10, 30), (1200,), (300, 4)])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_equals_the_formula(shape: tuple[int, ...], rows: int):
    """Bit by bit, as every entry is that of one of the models; of matrices, stacks and vectors, whatever the pieces."""
    b, W = BASE.reshape(shape), TUNED.reshape(shape)
    found = edited(OP, W, {"b": b, "w": W}, rows=rows)
    assert torch.equal(found, expected(b, W).float())
    kept = (found == W).float().mean()
    assert 0.02 < kept < 0.4


def test_a_large_tensor_has_exact_quartiles():
    """More scores than mergekit draws from."""
    generator = torch.Generator().manual_seed(1)
    b = torch.randn(2000, 600, generator=generator)
    W = b + 0.1 * torch.rand(2000, 1, generator=generator) * torch.randn(2000, 600, generator=generator)
    found = edited(OP, W, {"b": b, "w": W}, rows=150)
    assert (found != expected(b, W).float()).sum() <= 2  # scores are compared in float32


def test_what_did_not_change_stays():
    """Equal models, rows without any change, and one row that changed alone."""
    assert torch.equal(edited(OP, BASE, {"b": BASE, "w": BASE}), BASE)
    W = BASE.clone()
    W[3] += CHANGE[3]
    assert torch.equal(edited(OP, W, {"b": BASE, "w": W}), W)


def test_divergences_of_close_rows():
    """Of logits that differ by 1e-5 the divergence is half the variance of the difference under p, to 1 in 10^4."""
    d = 1e-5 * CHANGE.double()
    b = BASE.double()
    p = torch.softmax(b, -1)
    mean = (p * d).sum(-1, keepdim=True)
    variance = (p * (d - mean) ** 2).sum(-1)
    assert torch.allclose(row_divergences(b + d, b), variance / 2, rtol=1e-4, atol=0)


def test_an_empty_tensor_stays_empty():
    """There are no quartiles then."""
    empty = torch.zeros(0, 5)
    assert edited(OP, empty, {"b": empty, "w": empty}).shape == (0, 5)


def test_one_model_is_fused():
    """Two are refused."""
    with pytest.raises(ValidationError, match="at most 1"):
        ArceeFusion.model_validate({"op": "arcee_fusion", "base": "b", "models": ["w", "v"]})
