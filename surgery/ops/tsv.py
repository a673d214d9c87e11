"""Merge task singular vectors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from surgery.ops.spectral_merge import SpectralMergeOp
from surgery.spectral import cost

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Piece


class Tsv(SpectralMergeOp):
    """W' = b + alpha U' diag(S_1 ... S_k) V'^T, from the leading r = floor(n / k) triplets of each of k task vectors.

    w_i (W_i - b) = U_i S_i V_i^T, n = min(rows, cols); U' is the matrix with orthonormal columns that is nearest to
    [U_1 ... U_k], V' to [V_1 ... V_k]: the tasks no longer interfere. Triplets whose value is 0 up to rounding are left
    out, as their vectors are arbitrary. Where vectors of several tasks depend on each other U' and V' are not unique:
    they then span no more than those do, and equal task vectors count once. One model alone: b + alpha w_1 (W_1 - b).
    More models than n: b. Source: Gargiulo et al. 2025, Task Singular Vectors (TSV-Merge), arXiv 2412.00081.
    """

    op: Literal["tsv"]

    def _rank(self, shape: tuple[int, ...]) -> int:
        return min(shape) // len(self.models)

    def change(self, piece: Piece) -> Tensor:
        from surgery.spectral.decorrelated import decorrelated
        from surgery.spectral.rank import meaningful_triplets
        from surgery.spectral.restore import compose

        rank = self._rank(piece.W.shape)
        found = decorrelated([meaningful_triplets(d, rank, piece.decomposer) for d in self.weighted(piece)])
        return compose(found, found.S)

    def workspace(self, shape: tuple[int, ...]) -> int:
        return cost.merge(shape, self._rank(shape), len(self.models) * self._rank(shape))

    def flops(self, shape: tuple[int, ...]) -> int:
        k, n, rank = len(self.models), min(shape), self._rank(shape)
        return cost.flops(shape, rank, matrices=k) + 4 * sum(shape) * n * n + 18 * n**3 + 2 * math.prod(shape) * n

    def remark(self, shape: tuple[int, int]) -> str | None:
        return None if self._rank(shape) else f"leaves the base's: {len(self.models)} models, {min(shape)} directions"
