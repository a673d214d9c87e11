"""Weaken the singular directions that a fine-tuning brought in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from surgery.graded import Amount, Number, within, written
from surgery.ops.base import RESULT
from surgery.ops.spectral import TwoModelOp
from surgery.quantity import Quantity
from surgery.spectral import cost

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer


def _looks_at_some(head: Quantity) -> Quantity:
    if not all(amount.of(1) for amount in written(head)):
        raise ValueError("found 0, so that no direction is looked at; expected at least 1, or a percentage above 0%")
    return head


class SuppressIntruders(TwoModelOp):
    """W' = W + (scale - 1) sum_j s_j u_j v_j^T over the intruders among the leading h = `head` triplets of W = U S V^T.

    u_j is an intruder when max_i |cos(u_j, u_b,i)| < `threshold`, where u_b,i are the left singular vectors of b, the
    tensor of the model `from`, less those whose value is 0 up to rounding. scale 0, the default, removes intruders, 1
    keeps them. Without intruders W' = W. Where b is 0 all directions are intruders. Source: Shuttleworth et al. 2024,
    LoRA vs Full Fine-tuning: An Illusion of Equivalence, arXiv 2410.21228; threshold and head are its code's.
    """

    op: Literal["suppress_intruders"]
    head: Annotated[Amount, AfterValidator(_looks_at_some)] = Field(
        default=Quantity(count=10),
        description="how many leading directions are looked at: a count, a percentage of min(rows, cols), or `all`",
    )
    threshold: Annotated[Number, within(0, 1)] = Field(
        default=0.5, description="the |cos| below which no direction of `from` resembles one"
    )
    scale: Annotated[Number, within(0)] = Field(
        default=0.0, description="what the singular values of intruders are multiplied with"
    )

    def apply(self, W: Tensor, sources: Mapping[str, Tensor], decomposer: Decomposer) -> Tensor:
        """W' for a matrix W and b = `sources[from]`. Raises NumericalError for NaN, infinity, or no convergence."""
        from surgery.spectral.intruders import are_intruders
        from surgery.spectral.rank import numerical_rank

        b = self._finite_source(W, sources)
        head = self.head.of(min(W.shape))
        leading, base = decomposer.triplets(W, head), decomposer.triplets(b, min(W.shape))
        known = base.U[:, : numerical_rank(base.S, b.shape, b.dtype)]
        intruders = are_intruders(known.mT @ leading.U, self.threshold)
        changes = leading.S * intruders * (self.scale - 1)
        return W.addmm(leading.times(changes), leading.V.mT) if intruders.any() else W.clone()

    def decomposes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        n = min(shape)
        return {RESULT: (self.head.of(n), 0), self.from_: (n, 0)}

    def workspace(self, shape: tuple[int, ...]) -> int:
        return cost.workspace(shape, min(shape))

    def flops(self, shape: tuple[int, ...]) -> int:
        n, head = min(shape), self.head.of(min(shape))
        decomposed = cost.flops(shape, n, matrices=1) + cost.flops(shape, head, matrices=1)
        return decomposed + 2 * math.prod(shape) * head
