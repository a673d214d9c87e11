"""Dropping at random, the smaller the likelier: MAGPRUNE, the sparsifier of DELLA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from surgery.ops.magnitudes import bits_of_magnitude
from surgery.ops.sparsifier import Sparsifier, everything, nothing

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.uniform import Uniform


def magprune(density: float, epsilon: float, uniform: Uniform) -> Sparsifier:
    """Keep each entry of a matrix with the probability that `probabilities` gives it, independently of the others.

    Density 1 keeps all, 0 nothing, whatever epsilon. Source: Deep et al. 2024, section 3.1, with density = 1 - p, in
    the parameters of mergekit: epsilon is half the distance between the smallest and the largest probability.
    """
    if density >= 1:
        return everything
    if density <= 0:
        return nothing
    return lambda d, first: d * uniform.at(first, d.shape, d.device).lt_(probabilities(d, density, epsilon))


def probabilities(d: Tensor, density: float, epsilon: float) -> Tensor:
    """p = density - epsilon + 2 epsilon r / (n - 1) for the entry of rank r = 0 ... n - 1 by magnitude in its row of n.

    `d` is [rows, n], the result likewise, float32. Magnitudes are compared in float32; among equal ones the first has
    the lowest rank. A row of one has p = density.
    """
    n = d.shape[-1]
    if n == 1:
        return torch.full(d.shape, density, device=d.device)
    ladder = torch.linspace(density - epsilon, density + epsilon, n, device=d.device)
    return torch.empty(d.shape, device=d.device).scatter_(-1, ascending(d), ladder.expand(d.shape))


def ascending(d: Tensor) -> Tensor:
    """The columns of each row of d by magnitude, int64; equal ones from left to right.

    Magnitude and column make one number of 64 bits, since numpy sorts such numbers 20 times as fast as torch sorts
    floats with their places (4 and 87 ns an entry in rows of 2,048).
    """
    keys = bits_of_magnitude(d).long().bitwise_left_shift_(32)
    keys.bitwise_or_(torch.arange(d.shape[-1], device=d.device))
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=-1)
    else:
        keys = keys.sort(dim=-1).values
    return keys.bitwise_and_(0xFFFFFFFF)
