"""Keep the leading singular triplets only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from surgery.graded import Amount, written
from surgery.ops.base import RESULT
from surgery.ops.spectral import EDITED, SpectralOp
from surgery.quantity import Quantity
from surgery.spectral import cost

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer


def _keeps_something(rank: Quantity) -> Quantity:
    if not all(amount.of(1) for amount in written(rank)):
        raise ValueError("found 0, which would erase the matrices; expected at least 1, or a percentage above 0%")
    return rank


class TruncateRank(SpectralOp):
    """W' = U_r S_r V_r^T, the r = `rank` leading triplets of the running tensor W = U S V^T.

    The nearest matrix of rank r. Source: Sharma, Ash, Misra 2023, The Truth is in There (LASER), arXiv 2312.13558.
    """

    op: Literal["truncate_rank"]
    rank: Annotated[Amount, AfterValidator(_keeps_something)] = Field(
        description="how many leading triplets are kept: a count, a percentage of min(rows, cols), or `all`"
    )

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def apply(
        self,
        W: Tensor,
        sources: Mapping[str, Tensor],  # noqa: ARG002 - of Op
        decomposer: Decomposer,
    ) -> Tensor:
        """W' for a matrix W. Raises NumericalError for NaN, infinity, or no convergence."""
        from surgery.spectral.restore import compose
        from surgery.spectral.triplets import require_finite

        n = min(W.shape)
        rank = self.rank.of(n)
        if rank == n:
            return W.clone()
        require_finite(W, EDITED)
        leading = decomposer.triplets(W, rank)
        return compose(leading, leading.S)

    def decomposes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        n = min(shape)
        rank = self.rank.of(n)
        return {} if rank == n else {RESULT: (rank, 0)}

    def workspace(self, shape: tuple[int, ...]) -> int:
        return cost.workspace(shape, self.rank.of(min(shape)))

    def flops(self, shape: tuple[int, ...]) -> int:
        return cost.flops(shape, self.rank.of(min(shape)), matrices=1)

    def remark(self, shape: tuple[int, int]) -> str | None:
        n = min(shape)
        return f"kept whole: rank {self.rank} >= {n}" if self.rank.of(n) == n else None
