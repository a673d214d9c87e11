"""One model's tensors, perhaps scaled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surgery.graded import Number
from surgery.ops.base import RESULT, Role
from surgery.ops.merge import MergeOp

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Piece


class Passthrough(MergeOp):
    """W' = s W_1, s = `scale`.

    With a scale of 1, the default, it is W_1 itself, copied, or cast to the dtype of the output. Source: mergekit's
    passthrough.
    """

    op: Literal["passthrough"]
    models: tuple[Role] = Field(description="the role of the model")
    scale: Number = Field(default=1.0, description="what its tensors are multiplied by")

    @property
    def copies(self) -> bool:
        return self.scale == 1 and self.models != (RESULT,)

    def edit(self, piece: Piece) -> Tensor:
        (W,) = self.merged(piece)
        return W if self.scale == 1 else W * self.scale

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)
