"""EMR-Merging: the unified task vector that it elects."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surgery.graded import Number
from surgery.ops.merge import TaskVectorOp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from surgery.ops.whole import Piece


class Emr(TaskVectorOp):
    """W' = b + lambda g max_i relu(g d_i), with g = sign(sum_i d_i), entry by entry.

    Of the changes that have the sign of their sum, the largest. Where the sum is 0, the result is b (the authors' code
    takes the largest of those below 0 there). The masks and scales by which the paper restores each task from this
    vector belong to the task, not to one merged model, and are not made. One model gives that model, to rounding.
    Source: Huang et al. 2024, EMR-Merging: tuning-free high-performance model merging, arXiv 2405.17461, the step
    Elect.
    """

    op: Literal["emr"]
    lambda_: Number = Field(default=1.0, alias="lambda", description="the factor of the merged task vector")

    def edit(self, piece: Piece) -> Tensor:
        b, vectors = self.task_vectors(piece)
        return elected(vectors).mul_(self.lambda_).add_(b)

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * (len(self.models) + 5) * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 5 * len(self.models) * math.prod(shape)


def elected(vectors: Sequence[Tensor]) -> Tensor:
    """g max_i relu(g d_i), in new memory. NaN stays NaN."""
    import torch

    from surgery.ops.combination import combination

    sign = combination([1.0] * len(vectors), vectors).sign_()
    largest = torch.zeros_like(sign)
    for d in vectors:
        torch.maximum(largest, d * sign, out=largest)
    return largest.mul_(sign)
