"""WiSE-FT: the straight line between a model and its fine-tuned twin."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from surgery.graded import Number, within
from surgery.ops.base import Role
from surgery.ops.merge import TaskVectorOp, of_role

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Piece


class WiseFt(TaskVectorOp):
    """W' = (1 - alpha) b + alpha W_1.

    `alpha` 0 gives b, 1 gives W_1, bit by bit. Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models,
    arXiv 2109.01903; they advise 0.5 where nothing else is known.
    """

    op: Literal["wise_ft"]
    models: tuple[Role] = Field(description="the role of the fine-tuned model, W_1")
    alpha: Annotated[Number, within(0, 1)] = Field(
        default=0.5, description="the share of the fine-tuned model, from 0 to 1"
    )

    def edit(self, piece: Piece) -> Tensor:
        (tuned,) = self.merged(piece)
        return of_role(piece, self.base).lerp(tuned, self.alpha)

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 3 * math.prod(shape)
