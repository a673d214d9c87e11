"""The merges that sum task vectors: what they have in common."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from surgery.graded import Number
from surgery.ops.merge import PerModel, TaskVectorOp, divisor, each_within

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.sparsifier import Sparsifier
    from surgery.ops.whole import Edit, Piece, Whole

COUNTS_BYTES = 1 << 20  # that `Magnitudes` takes to count a tensor's magnitudes, up to two ranks of it, or a piece's


class TaskVectorSum(TaskVectorOp):
    """W' = b + lambda T, with T = sum_i w_i v_i, divided by sum_i w_i with `normalize`; v_i is the task vector d_i, or
    what a subclass makes of it.

    With `elects`, both sums are, entry by entry, over the i for which w_i v_i has the elected sign, that of
    sum_i w_i v_i (see `election`), and where none has, or where their weights cancel, nothing is divided. Without it,
    weights that cancel are an error with `normalize`, which would divide by rounding errors (mergekit divides by 1).
    All weights 0 give b.
    """

    elects: ClassVar[bool] = False

    weights: PerModel = Field(default=1.0, validate_default=True, description="one weight a model; 1 if omitted")
    normalize: bool = Field(default=False, description="divide by the sum of the weights")
    lambda_: Number = Field(default=1.0, alias="lambda", description="the factor of the merged task vector")

    def check(self) -> None:
        if not self.elects:
            self._divisor()

    def edit(self, piece: Piece) -> Tensor:
        b, vectors = self.task_vectors(piece)
        return self.summed(vectors, [1.0] * len(vectors)).mul_(self.lambda_).add_(b)

    def summed(self, vectors: list[Tensor], scales: list[float]) -> Tensor:
        """T, of the vectors s_i v_i with scales s_i > 0; in new memory."""
        from surgery.ops.combination import combination
        from surgery.ops.election import agreeing_sum, elected_sign

        coefficients = [w * s for w, s in zip(self.weights, scales, strict=True)]
        if self.elects:
            sign = elected_sign(vectors, coefficients)
            return agreeing_sum(sign, vectors, coefficients, self.weights if self.normalize else None)
        total = self._divisor()
        return combination([c / total for c in coefficients], vectors)

    def _divisor(self) -> float:
        """That of the sum; weights that are all 0 need none. Raises ValueError where they cancel."""
        return divisor(self.weights, optional=True) if self.normalize and any(self.weights) else 1.0

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * (len(self.models) + (6 if self.elects else 4)) * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return (9 if self.elects else 3) * len(self.models) * math.prod(shape)


class SparseTaskVectorSum(TaskVectorSum):
    """The same, of task vectors that are made sparse: v_i = s_i(d_i), which keeps about the share `density` of the
    entries; with `rescale`, v_i = |d_i|_1 / |s_i(d_i)|_1 s_i(d_i), which keeps the L1 norm of the whole.
    """

    measuring: ClassVar[int] = 0  # the passes in which `sparsifiers` measures
    rescaling: ClassVar[int] = 1  # those in which `scales` does

    density: Annotated[PerModel, each_within(0, 1)] = Field(
        default=1.0, validate_default=True, description="the share of entries that is kept, one number a model"
    )
    rescale: bool = Field(default=False, description="keep the L1 norm of each task vector")

    def sparsifiers(self, whole: Whole) -> list[Sparsifier]:
        """What makes each of the task vectors sparse, in the order of `models`."""
        raise NotImplementedError

    def scales(self, whole: Whole, sparsifiers: list[Sparsifier]) -> list[float]:
        """What makes up for the entries that were dropped, with `rescale`."""
        from surgery.ops.sparsifier import rescaling

        return rescaling(whole, self.vectors, sparsifiers)

    def workspace(self, shape: tuple[int, ...]) -> int:
        counts = COUNTS_BYTES * (len(self.models) + 1) if self.measuring else 0
        return super().workspace(shape) + counts

    @property
    def dense(self) -> bool:
        """Whether every task vector stays whole."""
        return all(density == 1 for density in self.density)

    @property
    def passes(self) -> int:
        return 1 if self.dense else self.measuring + (self.rescaling if self.rescale else 0) + 1

    def prepare(self, whole: Whole) -> Edit:
        if self.dense:
            return super().prepare(whole)
        sparsifiers = self.sparsifiers(whole)
        scales = self.scales(whole, sparsifiers) if self.rescale else [1.0] * len(sparsifiers)

        def edit(piece: Piece) -> Tensor:
            b, vectors = self.task_vectors(piece)
            for i, sparsify in enumerate(sparsifiers):
                vectors[i] = sparsify(vectors[i], piece.first)
            return self.summed(vectors, scales).mul_(self.lambda_).add_(b)

        return edit
