from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from surgery.errors import NumericalError
from surgery.ops.truncate_rank import TruncateRank
from surgery.spectral.decomposer import Decomposer
from tests.strategies import normal, orthonormal, pairs, weight


def truncate(rank: object) -> TruncateRank:
    return TruncateRank.model_validate({"op": "truncate_rank", "rank": rank})


@settings(deadline=None, max_examples=60)
@given(pairs(), st.integers(1, 24))
def test_truncation_is_the_best_of_its_rank(pair: tuple[Tensor, Tensor], rank: int):
    """The rank is at most r and the distance to W is that of Eckart and Young, the norm of the values left out."""
    W = pair[1]
    found = truncate(rank).apply(W, {}, Decomposer()).double()
    S = torch.linalg.svdvals(W.double())
    best = S[rank:].norm()
    tiny = 1e-5 * W.double().norm() + 1e-30
    assert torch.linalg.svdvals(found)[rank:].norm() <= tiny
    assert abs((found - W).norm() - best) <= tiny


def test_full_rank_is_the_matrix_itself():
    """A rank of n or more changes nothing, bit by bit, and is remarked upon."""
    W = weight(torch.Generator().manual_seed(0), "flat", 30, 20).float()
    for rank in (20, 64, "all"):
        assert torch.equal(truncate(rank).apply(W, {}, Decomposer()), W)
        assert truncate(rank).remark((30, 20)) == f"kept whole: rank {rank} >= 20"
    assert truncate(19).remark((30, 20)) is None


@pytest.mark.parametrize("rank", [0, "0%", -1, "most"])
def test_rank_must_keep_something(rank: object):
    """A rank of 0 would erase the matrices."""
    with pytest.raises(ValidationError, match="rank"):
        truncate(rank)


def test_bad_values_are_refused():
    """Infinity in the matrix is a NumericalError."""
    W = torch.ones(6, 5)
    W[1, 1] = float("inf")
    with pytest.raises(NumericalError, match="the tensor being edited has 1 value"):
        truncate(2).apply(W, {}, Decomposer())


def test_only_the_running_tensor_is_read():
    """No other model is needed."""
    assert truncate(2).reads == ()
    assert truncate(2).uses_result


def noisy(signals: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with strong signals in it, and the signals."""
    generator = torch.Generator().manual_seed(seed)
    S = 60.0 * orthonormal(generator, 90, signals) @ orthonormal(generator, 60, signals).mT
    return (normal(generator, 90, 60) + S).float(), S.float()


def test_marchenko_pastur_keeps_what_is_above_the_noise():
    """As many triplets as there are signals, those of the matrix; all are asked for."""
    W, S = noisy(4)
    found = truncate("marchenko_pastur").apply(W, {}, Decomposer())
    assert torch.allclose(found, truncate(4).apply(W, {}, Decomposer()), atol=1e-4)
    assert (found - S).norm() < 0.5 * (W - S).norm()
    assert truncate("marchenko_pastur").decomposes((90, 60)) == {"result": (60, 0)}
    assert truncate("marchenko_pastur").remark((90, 60)) is None


def test_of_noise_alone_one_direction_stays():
    """So that no matrix is erased; of a difference nothing stays."""
    W, _ = noisy(4)
    smooth = torch.eye(60)  # all values alike, below the edge
    assert torch.linalg.matrix_rank(truncate("marchenko_pastur").apply(smooth, {}, Decomposer())) == 1
    op = difference("marchenko_pastur")
    assert torch.equal(op.apply(W[:60] + smooth, {"base": W[:60].clone()}, Decomposer()), W[:60])


def difference(rank: object) -> TruncateRank:
    return TruncateRank.model_validate({"op": "truncate_rank", "rank": rank, "of": "base"}, context={"roles": ["base"]})


@settings(deadline=None, max_examples=40)
@given(pairs(), st.integers(1, 24))
def test_a_difference_is_truncated_to_its_best(pair: tuple[Tensor, Tensor], rank: int):
    """W' - b has the rank, at the distance of Eckart and Young from W - b; inputs are not changed."""
    b, W = pair
    before = b.clone()
    found = difference(rank).apply(W, {"base": b}, Decomposer())
    assert torch.equal(b, before)
    S = torch.linalg.svdvals((W - b).double())
    tiny = 1e-5 * (W.double().norm() + b.double().norm()) + 1e-30
    assert torch.linalg.svdvals((found - b).double())[rank:].norm() <= tiny
    assert abs((found.double() - W).norm() - S[rank:].norm()) <= tiny


def test_a_difference_asks_for_nothing_beforehand():
    """It is an intermediate result; the role is read, must be known and another."""
    op = difference(3)
    assert op.reads == ("base",)
    assert op.decomposes((30, 20)) == {}
    W, b = noisy(2)[0], noisy(2, seed=1)[0]
    assert torch.equal(difference("all").apply(W, {"base": b}, Decomposer()), W)
    with pytest.raises(ValidationError, match="another model's role"):
        TruncateRank.model_validate({"op": "truncate_rank", "rank": 3, "of": "result"})


def test_what_is_no_rank_is_told():
    """With all that may stand there; the word survives its serialisation."""
    with pytest.raises(ValidationError, match=r"found `marchenko`; expected a count such as `64`.*`marchenko_pastur`"):
        truncate("marchenko")
    assert truncate("marchenko_pastur").model_dump(mode="json")["rank"] == "marchenko_pastur"
    assert truncate("20%").model_dump(mode="json")["rank"] == "20%"
