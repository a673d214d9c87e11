"""The election of a sign for every entry, and the sum of those that agree with it: the heart of TIES."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from surgery.ops.combination import combination
from surgery.ops.merge import VANISHING_SUM

if TYPE_CHECKING:
    from torch import Tensor


def elected_sign(vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """e = sign(sum_i c_i v_i), 1 or -1; 1 where the terms cancel. Source: Yadav et al. 2023, the step Elect."""
    total = combination(coefficients, vectors)
    return torch.copysign(total.new_ones(()), total)


def agreeing_sum(
    sign: Tensor, vectors: Sequence[Tensor], coefficients: Sequence[float], weights: Sequence[float] | None = None
) -> Tensor:
    """sum_i c_i v_i over those i with sign(c_i v_i) = e, entry by entry; with `weights` over sum_i w_i of the same i,
    where that is not about 0 (see `VANISHING_SUM`).

    `sign` is e, 1 or -1 (0: nothing agrees); w_i has the sign of c_i. An entry of 0 agrees with neither; where nothing
    agrees, the result is 0. The vectors are overwritten: the result is in the memory of the first. With c_i = w_i = 1
    it is the disjoint mean of Yadav et al. 2023, arXiv 2306.01708, the step Disjoint Merge.
    """
    total: Tensor | None = None
    divisor = torch.zeros_like(sign) if weights is not None else None
    for i, (v, c) in enumerate(zip(vectors, coefficients, strict=True)):
        along = v.mul_(sign)
        along = along.clamp_(min=0) if c >= 0 else along.clamp_(max=0)  # 0 where c v is against e
        if divisor is not None and weights is not None:
            divisor.add_(along.sign(), alpha=abs(weights[i]))
        total = along.mul_(c) if total is None else total.add_(along, alpha=c)
    assert total is not None
    total.mul_(sign)
    if divisor is None or weights is None:
        return total
    if min(weights) >= 0:  # then the divisor is at least the least weight, or nothing agrees and the sum is 0
        return total.div_(divisor.clamp_(min=min((w for w in weights if w > 0), default=1.0)))
    vanishing = VANISHING_SUM * math.fsum(map(abs, weights))
    return total.div_(divisor.masked_fill_(divisor.abs() <= vanishing, 1))
