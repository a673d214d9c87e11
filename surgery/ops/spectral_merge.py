"""What the merges of task vectors by their singular value decompositions have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from surgery.graded import Number
from surgery.ops.base import Kind
from surgery.ops.merge import PerModel, TaskVectorOp, of_role
from surgery.ops.spectral import SpectralOp
from surgery.select import Select

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Piece


class SpectralMergeOp(TaskVectorOp):
    """W' = b + alpha D, D being made of the task vectors d_i = W_i - b of one matrix and their `weights` w_i.

    For matrices alone, and by default for those of attention and MLP; a step before it, `linear` say, merges the other
    tensors. Task vectors of zeros add nothing; where all are zeros, W' = b.
    """

    kind: ClassVar[Kind] = "matrix"
    natural: ClassVar[Select] = SpectralOp.natural

    weights: PerModel = Field(
        default=1.0, validate_default=True, description="the factor of each task vector; 1 if omitted"
    )
    alpha: Number = Field(default=1.0, description="the factor of what is added to the base")

    def edit(self, piece: Piece) -> Tensor:
        return self.onto_base(piece, self.change(piece))

    def onto_base(self, piece: Piece, change: Tensor) -> Tensor:
        """b + alpha D, in D's memory."""
        return change.mul_(self.alpha).add_(of_role(piece, self.base))

    def change(self, piece: Piece) -> Tensor:
        """D, in memory of its own. Raises NumericalError for NaN, infinity, or no convergence."""
        raise NotImplementedError

    def total(self, piece: Piece) -> Tensor:
        """sum_i w_i d_i."""
        vectors = self.weighted(piece)
        total = next(vectors)
        for d in vectors:
            total.add_(d)
        return total

    def weighted(self, piece: Piece) -> Iterator[Tensor]:
        """w_i d_i, one after the other, each in memory of its own."""
        for weight, d in zip(self.weights, self.each(piece), strict=True):
            yield d.mul_(weight)

    def each(self, piece: Piece) -> Iterator[Tensor]:
        """d_i, one after the other, each in memory of its own."""
        from surgery.spectral.triplets import require_finite

        b = of_role(piece, self.base)
        for role in self.models:
            d = of_role(piece, role) - b
            require_finite(d, f"the difference of `{role}` from `{self.base}`")
            yield d
