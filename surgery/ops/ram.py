"""Reinforced Agent Merging: average what several models changed, keep whole what one alone changed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from surgery.graded import Number, within
from surgery.ops.merge import PerModel, TaskVectorOp, each_within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from surgery.ops.whole import Edit, Piece, Whole


class _Ram(TaskVectorOp):
    epsilon: Annotated[PerModel, each_within(0)] = Field(
        default=1e-5, validate_default=True, description="a change up to this size is none, one number a model"
    )

    def factors(self, whole: Whole) -> Sequence[float]:
        """That of what a model alone has changed, for each of `models`."""
        raise NotImplementedError

    def prepare(self, whole: Whole) -> Edit:
        factors = self.factors(whole)

        def edit(piece: Piece) -> Tensor:
            b, vectors = self.task_vectors(piece)
            return merged(vectors, self.epsilon, factors).add_(b)

        return edit

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * (2 * len(self.models) + 4) * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 6 * self.passes * len(self.models) * math.prod(shape)


class Ram(_Ram):
    """W' = b + sum_i m_i d_i / sum_i m_i, entry by entry, with m_i = 1 where |d_i| > epsilon_i, else 0.

    The task vectors of reinforcement learning are sparse and overlap little: dividing by the number of models, as an
    average does, would shrink what one of them alone has changed. Where none has, the result is b. Source: Yuan et al.
    2026, Behavior knowledge merge in reinforced agentic models, arXiv 2601.13572.
    """

    op: Literal["ram"]

    def factors(self, whole: Whole) -> Sequence[float]:  # noqa: ARG002 - nothing is measured
        return [1.0] * len(self.models)


class RamPlus(_Ram):
    """As `ram`, and what model i alone has changed is multiplied by 1 + r min(rho_i, alpha).

    rho_i is the number of entries that model i and others have changed over the number of those that it alone has,
    counted in this tensor (hence `tl`, tensor-local; the paper counts in the whole model). r = 0 or alpha = 0 is `ram`.
    Source: Yuan et al. 2026, arXiv 2601.13572, RAM+.
    """

    op: Literal["ramplus_tl"]
    r: Annotated[Number, within(0)] = Field(default=0.1, description="how much the overlap counts")
    alpha: Annotated[Number, within(0)] = Field(default=0.2, description="the overlap beyond which it counts no more")

    @property
    def passes(self) -> int:
        return 2

    def factors(self, whole: Whole) -> Sequence[float]:
        from surgery.ops.combination import combination

        shared, alone = [0] * len(self.models), [0] * len(self.models)
        for piece in whole.pieces():
            masks = changed(self.vectors(piece), self.epsilon)
            count = combination([1.0] * len(masks), masks)
            for i, mask in enumerate(masks):
                mask.mul_(count)  # 0 where it has not changed, else how many models have
                alone[i] += int((mask == 1).sum())
                shared[i] += int((mask > 1).sum())
        ratios = [s / max(a, 1) for s, a in zip(shared, alone, strict=True)]  # without any alone, nothing is multiplied
        return [1 + self.r * min(ratio, self.alpha) for ratio in ratios]


def changed(vectors: Sequence[Tensor], epsilons: Sequence[float]) -> list[Tensor]:
    """m_i: 1 and 0 in the dtype of the vectors, which takes a fifth of the time of booleans; in new memory."""
    return [d.abs().gt_(epsilon) for d, epsilon in zip(vectors, epsilons, strict=True)]


def merged(vectors: Sequence[Tensor], epsilons: Sequence[float], factors: Sequence[float]) -> Tensor:
    """sum_i m_i d_i / max(1, sum_i m_i), each term times its factor where it stands alone. NaN stays NaN."""
    from surgery.ops.combination import combination

    masks = changed(vectors, epsilons)
    count = combination([1.0] * len(masks), masks)
    alone = count.clone().eq_(1)
    total = vectors[0].new_zeros(vectors[0].shape)
    for d, mask, factor in zip(vectors, masks, factors, strict=True):
        term = mask.mul_(d)
        total.add_(term)
        if factor != 1:
            total.add_(term.mul_(alone), alpha=factor - 1)
    return total.div_(count.clamp_(min=1))
