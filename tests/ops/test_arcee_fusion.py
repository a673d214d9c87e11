from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.arcee_fusion import ArceeFusion, row_divergences
from surgery.ops.whole import Piece, Whole
from surgery.spectral.decomposer import Decomposer
from tests.ops.whole import NAME, edited

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


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (1, 5), (2, 3), (2, 4), (3, 5)])
def test_small_tensors(shape: tuple[int, int]):
    """Every rank counts there."""
    generator = torch.Generator().manual_seed(sum(shape))
    for _ in range(30):
        b, change = (torch.randn(shape, generator=generator) for _ in range(2))
        W = b + change * torch.rand(shape, generator=generator) ** 3
        assert torch.equal(edited(OP, W, {"b": b, "w": W}), expected(b, W).float())


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


@pytest.mark.parametrize("change", [1.0, 1e-2, 1e-3, 1e-4])
def test_divergences_of_close_rows(change: float):
    """In float32 they are those of the definition in float64, also below 1e-8, where float32's definition is not."""
    W = BASE + change * CHANGE
    log_p, log_q = W.double().log_softmax(-1), BASE.double().log_softmax(-1)
    defined = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert torch.allclose(row_divergences(W, BASE).double(), defined, rtol=1e-6 / change, atol=0)


def test_divergences_of_rows_far_apart():
    """Differences of 200 overflow nothing; rows that are equal, or differ by a constant, have the divergence 0."""
    W = torch.tensor([[-200.0, 0, 0, 0], [200, 0, 0, 0], [0, 0, 0, 0], [7, 7, 7, 7]])
    found = row_divergences(W, torch.zeros(4, 4))
    assert found.isfinite().all()
    assert torch.equal(found[2:], torch.zeros(2))


def test_broken_values_are_not_dropped():
    """They are in the result, where the executor finds them, however few and small the scores are."""
    for value in (torch.nan, torch.inf):
        W = TUNED.clone()
        W[0, 5] = value
        assert not edited(OP, W, {"b": BASE, "w": W}).isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5), (0,), (5, 0)])
def test_an_empty_tensor_stays_empty(shape: tuple[int, ...]):
    """There are no quartiles then."""
    empty = torch.zeros(0, shape[-1])
    piece = Piece(empty, {"b": empty, "w": empty}, 0, Decomposer())
    assert OP.prepare(Whole(NAME, shape, lambda: iter([piece])))(piece).shape == empty.shape


def test_one_model_is_fused():
    """Two are refused."""
    with pytest.raises(
        ValidationError, match="found 2 models; `arcee_fusion` merges one, beside `base`; a step after it can"
    ):
        ArceeFusion.model_validate({"op": "arcee_fusion", "base": "b", "models": ["w", "v"]})
