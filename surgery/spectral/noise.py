"""Where the singular values of noise end.

The singular values of a large m x n matrix of independent numbers of variance sigma^2, n <= m and beta = n / m, follow
the Marchenko-Pastur law: s^2 / (m sigma^2) has the density sqrt((b - t)(t - a)) / (2 pi beta t) on a <= t <= b,
a, b = (1 -+ sqrt(beta))^2. So noise ends at sigma (sqrt(m) + sqrt(n)), and its median, which a signal of few directions
hardly moves, tells sigma.

Sources: Marchenko and Pastur 1967; Gavish and Donoho 2014, The optimal hard threshold for singular values is
4 / sqrt(3), arXiv 1305.5870 (unknown noise level).
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 1 << 14  # of the integral for the median; its error falls with their square, and is below 1e-7


@cache
def marchenko_pastur_median(beta: float) -> float:
    """The median of the law for 0 < beta <= 1.

    With t = 1 + beta - 2 sqrt(beta) cos(theta) the density becomes (2 / pi) sin^2(theta) / t, smooth from 0 to pi.
    """
    theta = (np.arange(STEPS) + 0.5) * (math.pi / STEPS)
    t = 1 + beta - 2 * math.sqrt(beta) * np.cos(theta)
    below = np.cumsum(np.sin(theta) ** 2 / t) * (2 / STEPS)
    at = float(np.interp(0.5, below, theta + 0.5 * math.pi / STEPS))
    return 1 + beta - 2 * math.sqrt(beta) * math.cos(at)


def noise_edge(S: Tensor, rows: int, cols: int) -> float:
    """sigma (sqrt(rows) + sqrt(cols)), sigma from the median of all singular values S (min(rows, cols), descending).

    0 for a matrix of which more than half of the values are 0.
    """
    n, m = sorted((rows, cols))
    median = float(S[(n - 1) // 2] + S[n // 2]) / 2
    sigma = median / math.sqrt(m * marchenko_pastur_median(n / m))
    return sigma * (math.sqrt(m) + math.sqrt(n))


def rank_above_noise(S: Tensor, rows: int, cols: int) -> int:
    """How many of all singular values S lie above the edge."""
    edge = noise_edge(S, rows, cols)
    return int((edge < S).sum())
