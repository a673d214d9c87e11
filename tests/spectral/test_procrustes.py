"""The rotation that brings one matrix nearest to another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from surgery.spectral.procrustes import procrustes
from tests.strategies import normal, orthonormal, with_values

UNIT = torch.eye(6, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 2, 6, 40])
def test_is_scipys(n: int) -> None:
    """For any two matrices that determine it."""
    A, B = normal(generator(n), 50, n), normal(generator(n + 1), 50, n)
    expected, _ = orthogonal_procrustes(A.numpy(), B.numpy())
    torch.testing.assert_close(procrustes(A.mT @ B), torch.from_numpy(expected), rtol=0, atol=1e-12)


@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 2**31 - 1))
def test_is_orthogonal_and_no_worse_than_others(n: int, rank: int, seed: int) -> None:
    """Of any rank: R^T R = 1, and tr(R^T M) is the sum of the singular values, which no other rotation exceeds."""
    g = generator(seed)
    values = torch.arange(n, 0, -1, dtype=torch.float64) * (torch.arange(n) < rank)
    M = with_values(g, n, n, values)
    R = procrustes(M)
    torch.testing.assert_close(R.mT @ R, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    reached = float((R * M).sum())
    assert reached == pytest.approx(float(values.sum()), abs=1e-10)
    for other in (torch.eye(n, dtype=torch.float64), orthonormal(g, n, n)):
        assert float((other * M).sum()) <= reached + 1e-10


def test_a_reflection_is_one() -> None:
    """Where det R = -1 is the best, it is taken."""
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(procrustes(5 * mirror), mirror)


def test_what_is_free_stays() -> None:
    """Of M = 0 the identity; of a turn in one plane, known there alone, that turn and nothing else."""
    torch.testing.assert_close(procrustes(0 * UNIT), UNIT)
    turn = UNIT.clone()
    turn[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    known = turn.clone()
    known[2:] = 0
    Q = orthonormal(generator(), 6, 6)
    torch.testing.assert_close(procrustes(Q @ known @ Q.mT), Q @ turn @ Q.mT, rtol=0, atol=1e-12)


def test_rounding_does_not_decide() -> None:
    """Noise of rounding in M, singular, moves R by no more than that."""
    M = with_values(generator(), 6, 6, torch.tensor([3.0, 2, 1, 0, 0, 0], dtype=torch.float64))
    noisy = M + 1e-15 * normal(generator(1), 6, 6)
    assert float((procrustes(M) - procrustes(noisy)).abs().max()) < 1e-13
