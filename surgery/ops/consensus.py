"""Consensus merging: what at least so many models find important for themselves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from surgery.graded import Number, within
from surgery.ops.merge import TaskVectorOp
from surgery.wording import numbered, show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from torch import Tensor

    from surgery.ops.whole import Piece


class Consensus(TaskVectorOp):
    """W' = b + lambda M D, with D = sum_i d_i and M = 1 where at least k of the masks are, else 0, entry by entry.

    The mask of model i is 1 where |d_i| >= tall_lambda |D - d_i|: its TALL mask, of what matters to its task. k = 2, as
    by default, leaves out what matters to none or to one alone; k = 0 is task arithmetic, and so is tall_lambda = 0,
    which makes every mask 1. Three or more equal models give b at tall_lambda 1: the sum of the others is larger than
    each. Source: Wang et al. 2024, Localizing task information for improved model merging and compression, arXiv
    2405.07813; its code compares by >.
    """

    op: Literal["consensus"]
    k: int = Field(default=2, ge=0, description="how many masks have to agree")
    tall_lambda: Annotated[Number, within(0)] = Field(
        default=1.0, description="how large a change must be beside the sum of the others' to matter"
    )
    lambda_: Number = Field(default=1.0, alias="lambda", description="the factor of the merged task vector")

    @model_validator(mode="after")
    def _enough_models(self) -> Self:
        if self.k > len(self.models):
            raise ValueError(
                f"found {numbered(len(self.models), 'model')} and {show(self.k)} for `k`, so that no entry could be "
                f"kept; name more models, or choose {len(self.models)} or less for `k`"
            )
        return self

    def edit(self, piece: Piece) -> Tensor:
        b, vectors = self.task_vectors(piece)
        return consensus(vectors, self.k, self.tall_lambda).mul_(self.lambda_).add_(b)

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * (len(self.models) + 5) * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 6 * len(self.models) * math.prod(shape)


def consensus(vectors: Sequence[Tensor], k: int, tall_lambda: float) -> Tensor:
    """M D, in new memory."""
    import torch

    from surgery.ops.combination import combination

    total = combination([1.0] * len(vectors), vectors)
    masks = torch.zeros_like(total)
    for d in vectors:
        masks.add_((total - d).abs_().mul_(tall_lambda).le_(d.abs()))
    return total.mul_(masks.ge_(k))
