"""A model moved towards another, each entry by no more than a given step."""

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


class NearSwap(TaskVectorOp):
    """W' = W_1 clamped to [b - t, b + t]: W_1 where it is within `t` of b, elsewhere b + t or b - t.

    t = 0 gives b; a t above every difference gives W_1, bit by bit. Source: alchemonaut 2024,
    huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001, whose formula is b + w d, d = W_1 - b, w = min(1, t / |d|). So
    is mergekit's nearswap, but for |d| < 1e-6, which it takes for 1e-6 there: smaller steps than t where t < 1e-6.
    """

    op: Literal["nearswap"]
    models: tuple[Role] = Field(description="the role of the other model, W_1")
    t: Annotated[Number, within(0)] = Field(description="the largest step, in the units of the weights")

    def edit(self, piece: Piece) -> Tensor:
        import torch

        b, (other,) = of_role(piece, self.base), self.merged(piece)
        moved = torch.clamp(other, min=b - self.t, max=b + self.t)
        return moved.masked_fill_(other.isinf(), math.nan)  # a broken model is not to pass for a far one

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * 4 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)
