from __future__ import annotations

import pytest
import torch
from torch import Tensor

from surgery.spectral.decomposer import Decomposer
from surgery.spectral.shared import Shared, Size
from surgery.spectral.triplets import Triplets
from tests.strategies import weight


class Recording(Decomposer):
    """Remembers what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[Size | str] = []

    def triplets(self, W: Tensor, head: int, tail: int = 0) -> Triplets:
        self.asked.append((head, tail))
        return super().triplets(W, head, tail)

    def values(self, W: Tensor) -> Tensor:
        self.asked.append("values")
        return super().values(W)


def matrix(seed: int = 0) -> Tensor:
    return weight(torch.Generator().manual_seed(seed), "decaying", 90, 60).float()


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        *(((30, 0), asked) for asked in ((30, 0), (20, 0), (1, 0))),
        *(((20, 10), asked) for asked in ((20, 10), (5, 3), (0, 10), (20, 0))),
        *(((60, 0), asked) for asked in ((20, 0), (5, 3), (0, 10), (40, 19))),
        ((0, 12), (0, 3)),
    ],
)
def test_parts_are_the_outermost_triplets_of_one_decomposition(size: Size, asked: Size):
    """Whatever is asked for, and how often: the leading and trailing columns of the one decomposition, contiguous."""
    W, decomposer = matrix(), Recording()
    shared = Shared(decomposer, [(W, size)])
    whole, found = shared.triplets(W, *size), shared.triplets(W, *asked)
    assert decomposer.asked == [size]
    count = sum(size)
    columns = [*range(asked[0]), *range(count - asked[1], count)]
    for X, part in ((whole.U, found.U), (whole.S, found.S), (whole.V, found.V)):
        assert torch.equal(X[..., columns], part)
        assert part.is_contiguous()


def test_values_come_from_a_full_decomposition():
    """Then they are not computed, also where they are asked for first; otherwise once, and the triplets apart."""
    W = matrix()
    for size, asked in (((60, 0), [(60, 0)]), ((20, 0), ["values", (20, 0)]), ((0, 0), ["values"])):
        decomposer = Recording()
        shared = Shared(decomposer, [(W, size)])
        values = shared.values(W)
        assert shared.values(W) is values
        if sum(size):
            shared.triplets(W, 10)
        assert decomposer.asked == asked
        assert torch.allclose(values, torch.linalg.svdvals(W.double()), rtol=0, atol=1e-7)


def test_inputs_without_a_size_are_asked_for_as_they_come():
    """One edit alone wants them, and gets what it would without sharing."""
    W, decomposer = matrix(), Recording()
    shared = Shared(decomposer, [(W, None)])
    found = shared.triplets(W, 10)
    shared.triplets(W, 5, 5)
    shared.values(W)
    assert decomposer.asked == [(10, 0), (5, 5), "values"]
    assert torch.equal(found.U, Decomposer().triplets(W, 10).U)


def test_what_is_no_input_is_computed():
    """Of a matrix that a step made, even one with the numbers of an input, nothing is asked or kept."""
    W, decomposer = matrix(), Recording()
    shared = Shared(decomposer, [(W, (60, 0))])
    copied = W.clone()
    assert torch.equal(shared.triplets(copied, 10).U, Decomposer().triplets(W, 10).U)
    assert torch.equal(shared.values(copied), Decomposer().values(W))
    assert not decomposer.asked
