"""Figures of singular values: energy, ranks, and how two spectra differ.

S is always a vector of singular values, descending, not negative, of any floating dtype; sums are in float64. All of
them are meant unless a function says otherwise. A zero matrix, or no values at all, has energy 0 and every rank 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from surgery.analysis.change import relative_change
from surgery.quantity import Quantity

OUTER = Quantity(percent=Fraction(20))  # the part of a spectrum that counts as its head, and as its tail


@dataclass(frozen=True, slots=True)
class ValuesChange:
    """How singular values differ, see `values_change`."""

    relative: float
    largest: float
    head_share: float
    bulk_share: float
    tail_share: float


def energy(S: Tensor) -> float:
    """sum_i s_i^2 = |W|_F^2."""
    return float(S.double().square().sum())


def stable_rank(S: Tensor) -> float:
    """|W|_F^2 / s_1^2, between 1 and the rank: small where few directions carry the energy.

    Source: Rudelson and Vershynin 2007, Sampling from large matrices, section 1 (there the numerical rank).
    """
    if not _largest(S):
        return 0.0
    return energy(S.double() / S[0])  # squares of ratios: no overflow


def effective_rank(S: Tensor) -> float:
    """exp(-sum_i p_i ln p_i) with p_i = s_i / sum_j s_j, between 1 and the rank: the number of equal values with as
    much entropy.

    Source: Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality, definition 1.
    """
    if not _largest(S):
        return 0.0
    p = S.double() / S[0]
    return math.exp(float(torch.special.entr(p / p.sum()).sum()))


def rank_for_energy(S: Tensor, share: float) -> int:
    """The least k with sum_{i <= k} s_i^2 >= share sum_i s_i^2, up to rounding; 0 <= share <= 1, and 0 needs none."""
    if not _largest(S):
        return 0
    sums = (S.double() / S[0]).square().cumsum(0)
    enough = share * float(sums[-1]) * (1 - len(S) * torch.finfo(torch.float64).eps)
    return int((sums < enough).sum()) + 1 if enough > 0 else 0


def energy_share(S: Tensor, k: int) -> float:
    """sum_{i <= k} s_i^2 / sum_i s_i^2; 0 for a zero matrix."""
    if not _largest(S):
        return 0.0
    ratios = S.double() / S[0]
    return energy(ratios[:k]) / energy(ratios)


def values_change(before: Tensor, after: Tensor, n: int) -> ValuesChange:
    """How the leading h singular values of two matrices, h <= n = min(rows, cols), differ; all figures over these h.

    relative    |after - before|_2 / |before|_2; 0 without a change, infinite from nothing to something
    largest     max_i |after_i - before_i|, in the unit of the values
    head_share, bulk_share, tail_share
                of sum_i (after_i - before_i)^2 the shares of the leading 20 %, of the rest and of the trailing 20 %;
                counts as in recipes, a value that would be in both belongs to the head; the sum is 1; NaN without a
                change, and where h < n
    """
    h = len(before)
    assert h == len(after), f"{h} values before, {len(after)} after"
    difference = (after.double() - before.double()).abs()
    largest = float(difference.max()) if h else 0.0
    relative = relative_change(float(before.double().norm()), float(difference.norm()))
    if h < n or not largest:
        return ValuesChange(relative, largest, math.nan, math.nan, math.nan)
    squares = (difference / largest).square()
    head = OUTER.of(n)
    tail = max(head, n - head)
    total = float(squares.sum())
    head_share, bulk_share, tail_share = (float(part.sum()) / total for part in squares.tensor_split((head, tail)))
    return ValuesChange(relative, largest, head_share, bulk_share, tail_share)


def _largest(S: Tensor) -> float:
    return float(S[0]) if len(S) else 0.0
