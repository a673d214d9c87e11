"""Sums of tensors with coefficients that were measured of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def combination(coefficients: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """sum_i c_i W_i, accumulated in the dtype of the tensors, in order, in new memory."""
    (c, *others), (first, *rest) = coefficients, tensors
    total = first * c
    for coefficient, tensor in zip(others, rest, strict=True):
        total.add_(tensor, alpha=coefficient)
    return total
