"""TIES: trim, elect a sign, sum what agrees with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from surgery.ops.task_vector_sum import SparseTaskVectorSum

if TYPE_CHECKING:
    from surgery.ops.sparsifier import Sparsifier
    from surgery.ops.whole import Whole


class Ties(SparseTaskVectorSum):
    """W' = b + lambda T, T being the weighted mean of the trimmed task vectors that agree with the elected sign.

    Of each task vector the share `density` of the entries that are largest in size is kept (see `trim`), an entry's
    sign is that of the weighted sum, and T averages over the models whose entry has it (see `election`); without
    `normalize` it sums them. Where all are 0, the result is b. Source: Yadav et al. 2023, TIES-Merging: resolving
    interference when merging models, arXiv 2306.01708, whose weights are 1, and whose density is 0.2; its code has one
    threshold for all tensors of a model, where here, as in mergekit, each has its own.
    """

    op: Literal["ties"]
    elects: ClassVar[bool] = True
    measuring: ClassVar[int] = 2
    normalize: bool = Field(default=True, description="divide by the sum of the weights that agree")

    def sparsifiers(self, whole: Whole) -> list[Sparsifier]:
        from surgery.ops.trim import trims

        return trims(whole, self.vectors, self.density)
