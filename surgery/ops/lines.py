"""LiNeS: task vectors that count more the deeper a layer lies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from surgery.graded import Graded, Number, Rule, within
from surgery.ops.merge import PerModel, TaskVectorOp

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Piece

DEPTH = Graded(rules=(Rule(value=(0.0, 1.0)),))


class Lines(TaskVectorOp):
    """W' = b + (alpha + beta l) sum_i w_i (W_i - b), with l = (i - 1) / (n - 1) the `depth` of layer i of n.

    So the task vectors are scaled from `alpha` in the first layer to `alpha + beta` in the last. What lies outside of
    the layers, embeddings, last norm and head, has depth 0 and is scaled by `alpha`, as in the authors' code. Another
    `depth` is a list that is interpolated over the layers, such as [0, 0, 1], or rules; the default is [0, 1].

    alpha + beta = 1 keeps a single fine-tuned model's last layer. For k models the authors take alpha = 1 / k for task
    arithmetic and look for beta. Source: Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret, Frossard 2024, LiNeS,
    arXiv 2410.17146; github.com/wang-kee/LiNeS, `LiNeS_scaling`.
    """

    op: Literal["lines"]
    weights: PerModel = Field(default=1.0, validate_default=True, description="one weight a model; 1 if omitted")
    alpha: Number = Field(description="the factor of the task vectors in the first layer, and outside of the layers")
    beta: Number = Field(description="what is added to it up to the last layer")
    depth: Annotated[Number, within(0, 1)] = Field(default=DEPTH, description="how deep a tensor lies, from 0 to 1")  # type: ignore[assignment]

    def edit(self, piece: Piece) -> Tensor:
        scale = self.alpha + self.beta * self.depth
        return self.combined(piece, [scale * w for w in self.weights])

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 2 * 4 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 3 * len(self.models) * math.prod(shape)
