from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgery.analysis.spectrum import (
    ValuesChange,
    effective_rank,
    energy,
    energy_share,
    rank_for_energy,
    stable_rank,
    values_change,
)
from surgery.spectral.rank import numerical_rank
from surgery.spectral.triplets import singular_values
from tests.strategies import SPECTRA, normal, pairs, spectrum, weight

NOTHING = (torch.zeros(3), torch.zeros(1, dtype=torch.float64), torch.zeros(0))


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", SPECTRA)
def test_figures_are_those_of_their_definitions(kind: str) -> None:
    """Energy, stable and effective rank agree with NumPy's norms of the matrix and with the entropy written out."""
    W = weight(generator(), kind, 30, 20)
    S = singular_values(W)
    A = W.numpy()
    s = np.linalg.svd(A, compute_uv=False)
    assert energy(S) == pytest.approx(np.sum(A**2), rel=1e-12)
    assert stable_rank(S) == pytest.approx(np.linalg.norm(A) ** 2 / np.linalg.norm(A, 2) ** 2, rel=1e-12)
    p = s / np.sum(s)
    assert effective_rank(S) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)), rel=1e-12)


def test_equal_values_have_full_rank_in_every_sense() -> None:
    """n equal values: every rank is n; one value: 1; whatever their size, and with zeros behind them."""
    for n in (1, 2, 7):
        for scale in (1e-300, 1e-20, 1.0, 1e300):
            S = torch.cat([scale * torch.ones(n, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)])
            assert stable_rank(S) == pytest.approx(n, rel=1e-14)
            assert effective_rank(S) == pytest.approx(n, rel=1e-14)
            assert numerical_rank(S, (n + 3, n + 5), torch.float64) == n
            assert rank_for_energy(S, 1.0) == n


@settings(deadline=None, max_examples=80)
@given(pairs())
def test_ranks_are_in_order(pair: tuple[Tensor, Tensor]) -> None:
    """1 <= stable rank and effective rank <= n, neither changes with the scale; a zero matrix has 0."""
    for W in pair:
        S = singular_values(W)
        for rank in (stable_rank, effective_rank):
            found = rank(S)
            assert (1 - 1e-12 <= found <= len(S) * (1 + 1e-12)) if S[0] else found == 0
            assert rank(3 * S) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("S", NOTHING)
def test_nothing_has_no_rank(S: Tensor) -> None:
    """A zero matrix, or no values, has energy 0 and every rank 0; nothing is NaN."""
    assert energy(S) == stable_rank(S) == effective_rank(S) == energy_share(S, 1) == 0
    assert numerical_rank(S, (3, 4), torch.float32) == rank_for_energy(S, 0.9) == rank_for_energy(S, 1) == 0


@pytest.mark.parametrize(("rows", "cols"), [(60, 40), (40, 60), (9, 1), (1, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numerical_rank_is_numpys(rows: int, cols: int, dtype: torch.dtype) -> None:
    """Products of few columns, rounded to a dtype, have the rank of numpy.linalg.matrix_rank: the number of columns."""
    k = max(1, min(rows, cols) // 3)
    X = (normal(generator(), rows, k) @ normal(generator(1), k, cols)).to(dtype)
    assert numerical_rank(singular_values(X.double()), X.shape, dtype) == np.linalg.matrix_rank(X.numpy()) == k


def test_numerical_rank_counts_from_its_threshold() -> None:
    """Values count above 4 sqrt(max(rows, cols)) eps s_1, not at it, with the eps of the dtype named."""
    eps = torch.finfo(torch.float32).eps
    S = values(2, 2.1 * 40 * eps, 2 * 40 * eps, 1e-13)
    assert numerical_rank(S, (20, 100), torch.float32) == 2
    assert numerical_rank(S, (50, 20), torch.float64) == 4


def test_rank_for_energy_by_hand() -> None:
    """Of energies 16, 4, 4, 1: the least number that carries a share, at the share itself too; 0 needs none."""
    S = values(4, 2, 2, 1)
    for share, k in ((0, 0), (1e-9, 1), (0.64, 1), (0.641, 2), (0.8, 2), (0.81, 3), (0.96, 3), (0.97, 4), (1, 4)):
        assert rank_for_energy(S, share) == k
    assert [energy_share(S, k) for k in (0, 1, 2, 3, 4, 9)] == pytest.approx([0, 0.64, 0.8, 0.96, 1, 1])
    assert rank_for_energy(values(5, 1, 1, 1, 1, 1), 0.9) == 3  # 27 of 30: the rounded sum is just below 0.9


@settings(deadline=None, max_examples=80)
@given(pairs(), st.floats(0, 1))
def test_rank_for_energy_is_the_least_that_suffices(pair: tuple[Tensor, Tensor], share: float) -> None:
    """The leading k carry the share up to rounding, k - 1 do not."""
    S = singular_values(pair[1])
    k = rank_for_energy(S, share)
    if not energy(S):
        assert k == 0
        return
    assert energy_share(S, k) >= share - 1e-12
    assert k == 0 or energy_share(S, k - 1) < share
    assert energy_share(S, len(S)) == 1


def test_values_change_by_hand() -> None:
    """Ten values, of which the first, the third and the last change by 3, 2 and 1: shares 9, 4 and 1 of 14."""
    before = values(30, 20, 15, 10, 9, 8, 7, 6, 5, 4)
    after = before + values(3, 0, -2, 0, 0, 0, 0, 0, 0, 1)
    found = values_change(before, after, 10)
    assert found.relative == pytest.approx(math.sqrt(14) / float(before.norm()))
    assert found.largest == 3
    assert (found.head_share, found.bulk_share, found.tail_share) == pytest.approx((9 / 14, 4 / 14, 1 / 14))


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        (1, (1, 0, 0)),
        (2, (0.5, 0, 0.5)),
        (3, (1 / 3, 1 / 3, 1 / 3)),
        (10, (0.2, 0.6, 0.2)),
        (12, (1 / 6, 2 / 3, 1 / 6)),
        (13, (3 / 13, 7 / 13, 3 / 13)),
    ],
)
def test_head_and_tail_are_a_fifth_each(n: int, shares: tuple[float, float, float]) -> None:
    """Equal changes everywhere: the shares are the counts, rounded as in recipes, at least 1; one value is the head."""
    S = spectrum("decaying", n)
    found = values_change(S, S + 1e-3, n)
    assert (found.head_share, found.bulk_share, found.tail_share) == pytest.approx(shares)


@settings(deadline=None, max_examples=80)
@given(pairs())
def test_values_change_agrees_with_numpy(pair: tuple[Tensor, Tensor]) -> None:
    """Relative and largest change as NumPy has them; shares sum to 1, or are NaN without a change."""
    before, after = (singular_values(W) for W in pair)
    found = values_change(before, after, len(before))
    b, a = before.numpy(), after.numpy()
    if not np.any(b):
        assert found.relative == (math.inf if np.any(a) else 0)
    else:
        assert found.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-12)
    assert found.largest == np.max(np.abs(a - b))
    total = found.head_share + found.bulk_share + found.tail_share
    assert total == pytest.approx(1) if found.largest else math.isnan(total)


def test_equal_values_have_not_changed() -> None:
    """Equal spectra, zero ones too: no change, and no shares of it; from nothing to something it is infinite."""
    for S in (spectrum("decaying", 9), *NOTHING):
        found = values_change(S, S.clone(), len(S))
        assert (found.relative, found.largest) == (0, 0)
        assert all(map(math.isnan, (found.head_share, found.bulk_share, found.tail_share)))
    assert values_change(values(0, 0), values(1, 0), 2) == ValuesChange(math.inf, 1, 1, 0, 0)
    assert values_change(values(1, 0), values(0, 0), 2) == ValuesChange(1, 1, 1, 0, 0)
    assert values_change(values(1), values(1 + 1e-200), 1).largest == 0
    assert values_change(values(0), values(1e-200), 1).head_share == 1


def test_shares_need_all_values() -> None:
    """With leading values alone the shares are not known, changed or not; the other figures are of these values."""
    for after, relative in ((values(3, 4), 0), (values(3, 5), 0.2)):
        found = values_change(values(3, 4), after, 10)
        assert found.relative == pytest.approx(relative)
        assert all(map(math.isnan, (found.head_share, found.bulk_share, found.tail_share)))


def test_different_numbers_of_values_are_our_own_bug() -> None:
    """The same number of values of both is compared."""
    with pytest.raises(AssertionError, match="2 values before, 3 after"):
        values_change(values(2, 1), values(3, 2, 1), 3)
