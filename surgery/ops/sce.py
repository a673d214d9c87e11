"""SCE: select the entries in which the models differ, calculate weights, erase minority signs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from surgery.graded import Number, within
from surgery.ops.merge import TaskVectorOp
from surgery.ops.task_vector_sum import COUNTS_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from surgery.ops.whole import Edit, Piece, Whole


class Sce(TaskVectorOp):
    """W' = b + sum_i eta_i v_i / sum_i eta_i over the i whose entry has the elected sign, that of sum_i v_i.

    Select: v_i is the task vector d_i in the k entries with the largest variance over the models, and 0 elsewhere; k
    is the share `select_topk` of the entries whose variance is not 0, rounded down, and entries that tie with the last
    are selected too. Calculate: eta_i = |v_i|^2 / sum_j |v_j|^2. Erase: the election (see `election`).

    With `select_topk` 1 all is selected. Where k = 0, so with one model or equal ones and a smaller share, the result
    is b. Where all v_i are 0, so is the sum. mergekit takes equal weights where the mean squares sum to less than 1e-6,
    which those of fine-tuned models mostly do; the paper knows no such limit, and here is none. Source: Wan et al.
    2024, FuseChat: knowledge fusion of chat models, arXiv 2408.07990.
    """

    op: Literal["sce"]
    select_topk: Annotated[Number, within(0, 1)] = Field(
        default=1.0, description="the share of the entries that is selected, by their variance over the models"
    )

    @property
    def passes(self) -> int:
        return 2 if self.select_topk == 1 else 4

    def prepare(self, whole: Whole) -> Edit:
        from surgery.ops.election import agreeing_sum, elected_sign

        threshold = self._threshold(whole)
        eta = self._eta(whole, threshold)

        def edit(piece: Piece) -> Tensor:
            b, vectors = self.task_vectors(piece)
            selected = _selected(vectors, threshold)
            sign = elected_sign(selected, [1.0] * len(selected))
            return agreeing_sum(sign, selected, eta, eta).add_(b)

        return edit

    def _threshold(self, whole: Whole) -> float:
        """The variance from which on an entry is selected."""
        from surgery.ops.magnitudes import Magnitudes

        if self.select_topk == 1:
            return 0.0
        variances = Magnitudes(whole, lambda piece: [variance(self.vectors(piece))])
        k = int(variances.nonzero[0] * self.select_topk)
        return variances.largest([[k]])[0][0] if k else math.inf

    def _eta(self, whole: Whole, threshold: float) -> list[float]:
        import torch

        squares = [0.0] * len(self.models)
        for piece in whole.pieces():
            for i, v in enumerate(_selected(self.vectors(piece), threshold)):
                squares[i] += float(torch.dot(v.view(-1), v.view(-1)))
        total = math.fsum(squares)
        return [square / total if total else 1 / len(squares) for square in squares]

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * (len(self.models) + 6) * math.prod(shape) + 2 * COUNTS_BYTES

    def flops(self, shape: tuple[int, ...]) -> int:
        return (12 if self.select_topk == 1 else 24) * len(self.models) * math.prod(shape)


def variance(vectors: Sequence[Tensor]) -> Tensor:
    """sum_i (v_i - mean_j v_j)^2 / n, entry by entry.

    Of products and sums that are rounded one by one: the same whatever the piece.
    """
    from surgery.ops.combination import combination

    mean = combination([1.0] * len(vectors), vectors).div_(len(vectors))
    total = (vectors[0] - mean).square_()
    for v in vectors[1:]:
        total.add_((v - mean).square_())
    return total.div_(len(vectors))


def _selected(vectors: list[Tensor], threshold: float) -> list[Tensor]:
    """v_i: the vectors where their variance reaches the threshold, 0 elsewhere; in the memory of the vectors."""
    from surgery.ops.magnitudes import magnitude

    if threshold == 0:
        return vectors
    selected = magnitude(variance(vectors)).ge_(threshold)
    return [v.mul_(selected) for v in vectors]
