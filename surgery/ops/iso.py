"""Merge task vectors and make their spectrum flat."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surgery.graded import Amount
from surgery.ops.spectral_merge import SpectralMergeOp
from surgery.quantity import Quantity
from surgery.spectral import cost

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Piece


class IsoC(SpectralMergeOp):
    """W' = b + alpha s U V^T with the mean s of the singular values of D = sum_i w_i (W_i - b) = U S V^T.

    Every direction of the sum counts alike. Those whose value is 0 up to rounding are arbitrary: they are left out, and
    not counted in the mean, so that the sum of the values stays; where all are meant it is the mean over min(rows,
    cols). Source: Marczak et al. 2025, No Task Left Behind (Iso-C), arXiv 2502.04959.
    """

    op: Literal["iso_c"]

    def change(self, piece: Piece) -> Tensor:
        from surgery.spectral.rank import meaningful_triplets
        from surgery.spectral.restore import flat

        return flat(meaningful_triplets(self.total(piece), min(piece.W.shape), piece.decomposer))

    def workspace(self, shape: tuple[int, ...]) -> int:
        return cost.merge(shape, min(shape), 0)

    def flops(self, shape: tuple[int, ...]) -> int:
        return cost.flops(shape, min(shape), matrices=1) + 3 * len(self.models) * math.prod(shape)


class IsoCts(SpectralMergeOp):
    """W' = b + alpha s U' V'^T: `iso_c` with the weakest directions of the sum replaced by those of single tasks.

    U_c, V_c are the leading c directions of D = sum_i w_i d_i, d_i = W_i - b; U_i, V_i the leading t of what D's leave
    of a task, w_i (d_i - U_c U_c^T d_i). U' is the matrix with orthonormal columns that is nearest to [U_1 ... U_k
    U_c], V' likewise, and s the mean of all their singular values. c is `common`, up to rounding: t = (n - c) / k is
    rounded, and c = n - k t, n = min(rows, cols). With t = 0, `common: all` say, and with one model this is `iso_c`.
    Directions whose value is 0 up to rounding are left out, as there. Where those of several tasks depend on each
    other, see `tsv`. Source: Marczak et al. 2025, No Task Left Behind (Iso-CTS), arXiv 2502.04959.
    """

    op: Literal["iso_cts"]
    common: Amount = Field(
        default=Quantity(percent=Fraction(80)),
        description="how many directions are those of the sum: a count, a percentage of min(rows, cols), or `all`",
    )

    def _ranks(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """c and t."""
        n, k = min(shape), len(self.models)
        own = min(round((n - self.common.of(n)) / k), n // k)
        return n - k * own, own

    def change(self, piece: Piece) -> Tensor:
        from surgery.spectral.decorrelated import decorrelated
        from surgery.spectral.rank import meaningful_triplets
        from surgery.spectral.restore import flat

        common, own = self._ranks(piece.W.shape)
        shared = meaningful_triplets(self.total(piece), common, piece.decomposer)
        parts = []
        for d in self.weighted(piece):
            scale = float(d.norm())
            rest = d.addmm_(shared.U, shared.U.mT @ d, alpha=-1)
            parts.append(meaningful_triplets(rest, own, piece.decomposer, scale))
        return flat(decorrelated([*parts, shared]))

    def workspace(self, shape: tuple[int, ...]) -> int:
        return cost.merge(shape, max(self._ranks(shape)), min(shape))

    def flops(self, shape: tuple[int, ...]) -> int:
        (common, own), k, n = self._ranks(shape), len(self.models), min(shape)
        decomposed = cost.flops(shape, common, matrices=1) + cost.flops(shape, own, matrices=k)
        return decomposed + 4 * k * math.prod(shape) * common + 4 * sum(shape) * n * n + 18 * n**3
