from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from surgery.analysis.change import diagonal_share, moved_back, relative_change
from surgery.spectral.triplets import Triplets, outer_triplets
from tests.strategies import normal, pairs, tuned, weight


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share_by_definition(delta: Tensor, triplets: Triplets) -> float:
    """sum_i (u_i^T Delta v_i)^2 over |Delta V|_F^2, or |U^T Delta|_F^2 for a wide matrix, with loops in float64."""
    D, U, V = (X.double().numpy() for X in (delta, triplets.U, triplets.V))
    diagonal = sum(float(U[:, i] @ D @ V[:, i]) ** 2 for i in range(U.shape[1]))
    known = D @ V if D.shape[0] >= D.shape[1] else U.T @ D
    return diagonal / float(np.sum(known**2))


def test_relative_change_is_never_nan() -> None:
    """0 without a change, infinite from nothing to something, else the ratio."""
    assert relative_change(4.0, 1.0) == 0.25
    assert relative_change(4.0, 0.0) == relative_change(0.0, 0.0) == 0
    assert relative_change(0.0, 1e-300) == math.inf


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50), (3000, 12), (12, 3000)])
@pytest.mark.parametrize("part", [0.2, 0.7, 1])
def test_diagonal_share_is_that_of_its_definition(shape: tuple[int, int], part: float) -> None:
    """Tall, wide and square, with some or all triplets, over several blocks of rows; in float32 to its accuracy."""
    base = weight(generator(), "decaying", *shape)
    triplets = outer_triplets(base, max(1, int(part * min(shape))))
    delta = tuned(generator(1), base, 0.1) - base + 0.02 * base
    expected = share_by_definition(delta, triplets)
    assert diagonal_share(delta, triplets) == pytest.approx(expected, rel=1e-12)
    single = Triplets(triplets.U.float(), triplets.S, triplets.V.float())
    assert diagonal_share(delta.float(), single) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (30, 30), (1, 1), (1, 5), (5, 1)])
def test_changed_values_are_on_the_diagonal(shape: tuple[int, int]) -> None:
    """Other values with the same directions: 1; directions alone exchanged for others: 0; values grow by half: 1."""
    base = weight(generator(), "decaying", *shape)
    n = min(shape)
    triplets = outer_triplets(base, n)
    new = torch.rand(n, generator=generator(1), dtype=torch.float64)
    assert diagonal_share((triplets.U * (new - triplets.S)) @ triplets.V.mT, triplets) == pytest.approx(1, abs=1e-12)
    assert diagonal_share(0.5 * base, triplets) == pytest.approx(1, abs=1e-12)
    if n > 1:
        assert diagonal_share((triplets.U * new) @ triplets.V.roll(1, 1).mT, triplets) < 1e-25


def test_share_on_the_diagonal_by_hand() -> None:
    """In the standard basis: 3 and 4 on the diagonal, 5 and 12 beside it; columns beyond the known are not seen."""
    unit = torch.eye(3, dtype=torch.float64)
    delta = torch.tensor([[3.0, 12, 0], [0, 4, 0], [5, 0, 0]], dtype=torch.float64)
    both = Triplets(unit[:, :2], torch.ones(2, dtype=torch.float64), unit[:, :2])
    first = Triplets(unit[:, :1], torch.ones(1, dtype=torch.float64), unit[:, :1])
    assert diagonal_share(delta, both) == pytest.approx(25 / (25 + 25 + 144))
    assert diagonal_share(delta, first) == pytest.approx(9 / 34)
    wide = Triplets(first.U[:2], first.S, first.V)
    assert diagonal_share(delta[:2], wide) == pytest.approx(9 / 153)  # its first row: 3, 12, 0


def test_denominator_is_the_whole_change_with_all_triplets() -> None:
    """With all n triplets the denominator is |Delta|_F^2, for a tall and for a wide matrix."""
    for shape in ((40, 15), (15, 40)):
        base = weight(generator(), "flat", *shape)
        triplets = outer_triplets(base, 15)
        delta = normal(generator(1), *shape)
        diagonal = torch.einsum("mi,mn,ni->i", triplets.U, delta, triplets.V)
        expected = float(diagonal.square().sum() / delta.square().sum())
        assert diagonal_share(delta, triplets) == pytest.approx(expected, rel=1e-12)


def test_random_change_has_one_of_max_m_n_on_the_diagonal() -> None:
    """A change without a relation to the base: near 1 / max(m, n), whichever part is known."""
    base = weight(generator(), "decaying", 300, 100)
    delta = normal(generator(1), 300, 100)
    for h in (20, 100):
        assert diagonal_share(delta, outer_triplets(base, h)) == pytest.approx(1 / 300, rel=0.5)


@settings(deadline=None, max_examples=80)
@given(pairs())
def test_diagonal_share_is_between_0_and_1(pair: tuple[Tensor, Tensor]) -> None:
    """For any small pair between 0 and 1, NaN without a change; the same for the transposed matrices."""
    base, other = pair
    triplets = outer_triplets(base, min(base.shape))
    found = diagonal_share(other - base, triplets)
    assert math.isnan(diagonal_share(torch.zeros_like(base), triplets))
    if torch.equal(base, other):
        assert math.isnan(found)
        return
    assert 0 <= found <= 1
    if base.shape[0] != base.shape[1]:
        mirrored = Triplets(triplets.V, triplets.S, triplets.U)
        assert diagonal_share((other - base).mT, mirrored) == pytest.approx(found, rel=1e-6)


def test_diagonal_share_is_not_above_1_by_rounding() -> None:
    """Changes of a value alone, in float32: never more than the whole."""
    for seed in range(20):
        column = weight(generator(seed), "flat", 6, 1).float()
        assert 1 - 1e-6 < diagonal_share(column, outer_triplets(column, 1)) <= 1


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.3, 1.0, 1.7])
def test_moved_back_is_the_share_that_was_undone(share: float) -> None:
    """A third model on the line through tuned and base, and beside it: the position along the line."""
    base = weight(generator(), "flat", 2500, 8)
    t = tuned(generator(1), base, 0.1)
    there = t - base
    third = t - share * there
    assert moved_back(base, t, third) == pytest.approx(share, abs=1e-12)
    aside = normal(generator(2), 2500, 8)
    aside -= (aside * there).sum() / (there * there).sum() * there
    assert moved_back(base, t, third + aside) == pytest.approx(share, abs=1e-10)


def test_moved_back_by_hand() -> None:
    """(1, 0) -> (3, 2), then (2, 4): -<(-1, 2), (2, 2)> / 8 = -1/4; vectors and matrices alike."""
    base, t, third = torch.tensor([1.0, 0]), torch.tensor([3.0, 2]), torch.tensor([2.0, 4])
    assert moved_back(base, t, third) == moved_back(base[None], t[None], third[None]) == -0.25


def test_nothing_to_move_back() -> None:
    """tuned = base gives NaN, third = tuned a positive 0, third = base exactly 1."""
    base, t = weight(generator(), "flat", 9, 5), weight(generator(1), "flat", 9, 5)
    assert math.isnan(moved_back(base, base.clone(), t))
    assert math.isnan(moved_back(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1)))
    assert math.copysign(1, moved_back(base, t, t)) == 1
    assert moved_back(base, t, t) == 0
    assert moved_back(base, t, base) == 1


def test_moved_back_accumulates_in_float64() -> None:
    """A small change of large half-precision weights is not lost: differences and sums are in float64."""
    base = torch.full((3000, 20), 256.0, dtype=torch.bfloat16)
    t, third = base + 2, base + 2
    third[:1000] = base[:1000]
    assert moved_back(base, t, third) == pytest.approx(1 / 3, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arguments_are_left_alone(dtype: torch.dtype) -> None:
    """None of the tensors is changed."""
    base = weight(generator(), "flat", 12, 7).to(dtype)
    t, third = (tuned(generator(i), base.double(), 0.1).to(dtype) for i in (1, 2))
    triplets, delta = outer_triplets(base, 4), t - base
    given = (base, t, third, delta, triplets.U, triplets.V)
    kept = [X.clone() for X in given]
    moved_back(base, t, third)
    diagonal_share(delta, triplets)
    assert all(torch.equal(X, Y) for X, Y in zip(given, kept, strict=True))
