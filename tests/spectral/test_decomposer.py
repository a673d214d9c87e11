from __future__ import annotations

import pytest
import torch

from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import outer_triplets, singular_values
from tests.strategies import weight


@pytest.mark.parametrize(("head", "tail"), [(8, 0), (1, 0), (0, 1), (8, 3), (40, 0)])
@pytest.mark.parametrize("kind", ["decaying", "outlier", "steep"])
def test_everything_is_computed(kind: str, head: int, tail: int) -> None:
    """The base class is the two functions, whichever route they take: the same bits, and no problem."""
    W = weight(torch.Generator().manual_seed(0), kind, 60, 40).float()
    found, expected = Decomposer().triplets(W, head, tail), outer_triplets(W, head, tail)
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("U", "S", "V"))
    assert torch.equal(Decomposer().values(W), singular_values(W))
    assert Decomposer().problem is None


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_strides_of_the_matrix_do_not_matter(shape: tuple[int, int]) -> None:
    """A transposed view and a part of a larger tensor have the bits of a contiguous copy."""
    W = weight(torch.Generator().manual_seed(0), "decaying", *shape).float()
    larger = torch.zeros(shape[0], shape[1] + 3)
    larger[:, :-3] = W
    expected = Decomposer().triplets(W, 40)
    for view in (W.mT.contiguous().mT, larger[:, :-3]):
        assert not view.is_contiguous()
        found = Decomposer().triplets(view, 40)
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("U", "S", "V"))
        assert torch.equal(Decomposer().values(view), Decomposer().values(W))


@pytest.mark.parametrize(("kind", "tail"), [("decaying", 0), ("outlier", 0), ("steep", 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_results_are_contiguous(shape: tuple[int, int], dtype: torch.dtype, kind: str, tail: int) -> None:
    """With the plain strides, whichever route made them: what is computed from them does not depend on their origin."""
    W = weight(torch.Generator().manual_seed(0), kind, *shape).to(dtype)
    for head in (1, 12):
        found = Decomposer().triplets(W, head, tail)
        k = head + tail
        assert (found.U.stride(), found.S.stride(), found.V.stride()) == ((k, 1), (1,), (k, 1))
