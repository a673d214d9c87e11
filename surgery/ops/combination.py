"""Sums of tensors with coefficients that were measured: one for all of a tensor, or tensors of them that broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Coefficient = float | Tensor


def combination(coefficients: Sequence[Coefficient], tensors: Sequence[Tensor]) -> Tensor:
    """sum_i c_i W_i, accumulated in the dtype of the tensors, in order, in new memory."""
    (c, *others), (first, *rest) = coefficients, tensors
    total = first * c
    for coefficient, tensor in zip(others, rest, strict=True):
        _add(total, coefficient, tensor)
    return total


def displaced(base: Tensor, coefficients: Sequence[Coefficient], tensors: Sequence[Tensor]) -> Tensor:
    """b + sum_i c_i (W_i - b), likewise.

    Not (1 - sum c) b + sum_i c_i W_i, which rounds where nothing differs: where all W_i are b, this is b, bit by bit.
    """
    total = base.clone()
    for coefficient, tensor in zip(coefficients, tensors, strict=True):
        _add(total, coefficient, tensor - base)
    return total


def _add(total: Tensor, coefficient: Coefficient, tensor: Tensor) -> None:
    if isinstance(coefficient, float | int):
        total.add_(tensor, alpha=coefficient)
    else:
        total.addcmul_(tensor, coefficient)
