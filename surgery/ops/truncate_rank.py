"""Keep the leading singular triplets only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from surgery.graded import AMOUNT_SCHEMA, Amount, read_amount, written
from surgery.ops.base import RESULT
from surgery.ops.spectral import EDITED, OtherRole, SpectralOp
from surgery.quantity import Quantity
from surgery.spectral import cost

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer

MARCHENKO_PASTUR = "marchenko_pastur"


def _rank(value: object) -> object:
    if value == MARCHENKO_PASTUR:
        return value
    try:
        rank = read_amount(value)
    except ValueError as error:
        raise ValueError(f"{error}, or `{MARCHENKO_PASTUR}`") from error
    if not all(amount.of(1) for amount in written(rank)):
        raise ValueError("found 0, which would erase the matrices; expected at least 1, or a percentage above 0%")
    return rank


if TYPE_CHECKING:
    Rank = Quantity | Literal["marchenko_pastur"]
else:
    Rank = Annotated[
        Amount | Literal["marchenko_pastur"],
        BeforeValidator(_rank),
        WithJsonSchema({"anyOf": [*AMOUNT_SCHEMA["anyOf"], {"const": MARCHENKO_PASTUR}]}),
    ]


class TruncateRank(SpectralOp):
    """W' = U_r S_r V_r^T, the r = `rank` leading triplets of the running tensor W = U S V^T.

    The nearest matrix of rank r. With `of`, the difference from b, the tensor of that role, is truncated instead:
    W' = b + U_r S_r V_r^T for W - b = U S V^T. `rank: marchenko_pastur` takes the singular values above the edge
    sigma (sqrt(rows) + sqrt(cols)) of noise, sigma estimated from their median; where none is above it, the leading
    triplet stays, or with `of` none. Sources: Sharma, Ash, Misra 2023, The Truth is in There (LASER), arXiv 2312.13558;
    Gavish and Donoho 2014, arXiv 1305.5870 (sigma).
    """

    op: Literal["truncate_rank"]
    rank: Rank = Field(
        description="how many leading triplets are kept: a count, a percentage of min(rows, cols), `all`, or "
        "`marchenko_pastur`, those above the noise"
    )
    of: OtherRole | None = Field(
        default=None, description="the role whose tensor the difference is taken from, truncated, and added to"
    )

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.of is None else (self.of,)

    def _asked(self, shape: tuple[int, ...]) -> int:
        """How many triplets are taken: all where their values tell the rank."""
        return self.rank.of(min(shape)) if isinstance(self.rank, Quantity) else min(shape)

    def _whole(self, shape: tuple[int, ...]) -> bool:
        return isinstance(self.rank, Quantity) and self._asked(shape) == min(shape)

    def apply(self, W: Tensor, sources: Mapping[str, Tensor], decomposer: Decomposer) -> Tensor:
        """W' for a matrix W. Raises NumericalError for NaN, infinity, or no convergence."""
        from surgery.spectral.triplets import require_finite

        if self._whole(W.shape):
            return W.clone()
        require_finite(W, EDITED)
        if self.of is None:
            return self._truncated(W, decomposer)
        b = sources[self.of]
        require_finite(b, f"`{self.of}`")
        return self._truncated(W - b, decomposer).add_(b)

    def _truncated(self, X: Tensor, decomposer: Decomposer) -> Tensor:
        from surgery.spectral.noise import rank_above_noise
        from surgery.spectral.restore import compose

        leading = decomposer.triplets(X, self._asked(X.shape))
        if self.rank == MARCHENKO_PASTUR:
            least = 1 if self.of is None else 0
            leading = leading.leading(max(least, rank_above_noise(leading.S, *X.shape)))
        return compose(leading, leading.S)

    def decomposes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        return {} if self._whole(shape) or self.of is not None else {RESULT: (self._asked(shape), 0)}

    def workspace(self, shape: tuple[int, ...]) -> int:
        difference = 0 if self.of is None else 4 * shape[0] * shape[1]
        return cost.workspace(shape, self._asked(shape)) + difference

    def flops(self, shape: tuple[int, ...]) -> int:
        return cost.flops(shape, self._asked(shape), matrices=1)

    def remark(self, shape: tuple[int, int]) -> str | None:
        return f"kept whole: rank {self.rank} >= {min(shape)}" if self._whole(shape) else None
