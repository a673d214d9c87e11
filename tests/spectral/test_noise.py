from __future__ import annotations

import math

import pytest
import torch

from surgery.spectral.noise import marchenko_pastur_median, noise_edge, rank_above_noise
from tests.strategies import normal, orthonormal


@pytest.mark.parametrize(("beta", "coefficient"), [(1.0, 2.8582), (0.5, 2.1711), (0.1, 1.6089)])
def test_median_agrees_with_the_published_coefficients(beta: float, coefficient: float):
    """omega(beta) = lambda*(beta) / sqrt(mu_beta) of Gavish and Donoho, lambda* their optimal threshold."""
    root = beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)
    optimal = math.sqrt(2 * (beta + 1) + 8 * beta / root)
    assert optimal / math.sqrt(marchenko_pastur_median(beta)) == pytest.approx(coefficient, abs=2e-3)


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.001])
def test_half_of_the_law_is_below_its_median(beta: float):
    """The density as published, integrated by another rule."""
    a, b = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    x = torch.linspace(0, 1, 200001, dtype=torch.float64)
    t = a + (marchenko_pastur_median(beta) - a) * x**2  # steps that are small where the density has its pole
    density = ((b - t) * (t - a)).clamp_min(0).sqrt() / (2 * math.pi * beta * t)
    density[0] = 0 if beta < 1 else density[1]
    assert float(torch.trapezoid(density, t)) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (250, 250)])
def test_noise_ends_at_the_edge(shape: tuple[int, int]):
    """The largest value of noise is at the edge, within 4 %, and sigma comes out whatever the scale."""
    X = 0.3 * normal(torch.Generator().manual_seed(0), *shape)
    S = torch.linalg.svdvals(X)
    assert noise_edge(S, *shape) == pytest.approx(0.3 * sum(map(math.sqrt, shape)), rel=0.01)
    assert float(S[0]) == pytest.approx(noise_edge(S, *shape), rel=0.04)


def test_signals_are_counted():
    """Five directions far above the noise."""
    generator = torch.Generator().manual_seed(0)
    X = normal(generator, 300, 200) + 100 * orthonormal(generator, 300, 5) @ orthonormal(generator, 200, 5).mT
    assert rank_above_noise(torch.linalg.svdvals(X), 300, 200) == 5


def test_low_rank_has_no_noise():
    """Where more than half of the values are 0, every other one counts; of no values but zeros none."""
    assert rank_above_noise(torch.tensor([3.0, 2, 1, 0, 0, 0, 0]), 9, 7) == 3
    assert rank_above_noise(torch.zeros(4), 4, 6) == 0
    assert rank_above_noise(torch.ones(1), 1, 5) == 0
