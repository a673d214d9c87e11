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
from tests.strategies import pairs, weight


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
