"""Merge task vectors in the basis that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from surgery.graded import Graded
from surgery.ops.combination import combination
from surgery.ops.merge import PerModel
from surgery.ops.spectral_merge import SpectralMergeOp
from surgery.spectral import cost
from surgery.wording import show

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Piece


def _shares(values: tuple[float | Graded, ...] | None) -> tuple[float | Graded, ...] | None:
    for value in values or ():
        for number in value.values if isinstance(value, Graded) else (value,):
            if not 0 <= number <= 1:
                raise ValueError(f"found {show(number)}; expected a number between 0 and 1")
    return values


class Knots(SpectralMergeOp):
    """W' = b + alpha U C, C merged of the coefficients C_i = S V_i^T of the task vectors in their common basis U.

    [d_1 ... d_k] = U S [V_1^T ... V_k^T] for d_i = W_i - b, so that d_i = U C_i. Of each C_i the share `density` of the
    entries that are largest in size is kept, and all that equal the smallest of these; then `method`:

    - `ties`: for each entry the sign of sum_i w_i C_i is elected, and C is the mean, weighted with w_i, of the entries
      that have it; 0 where the sum is 0.
    - `linear`: C = sum_i w_i C_i; with density 1 that is task arithmetic, as U U^T d_i = d_i.

    The signs of U's columns cancel. Directions whose value is 0 up to rounding are left out, as they are arbitrary; of
    equal singular values any basis may come out, and `ties` depends on it. The paper writes of V_i, its code merges
    S V_i, as here; only what `density` keeps depends on that. There the entries of all matrices compete, here of one.
    Sources: Stoica et al. 2024, Model merging with SVD to tie the Knots (KnOTS), arXiv 2410.19735; Yadav et al. 2023,
    TIES-Merging, arXiv 2306.01708.
    """

    op: Literal["knots"]
    method: Literal["ties", "linear"] = Field(default="ties", description="how the coefficients are merged")
    density: Annotated[PerModel | None, AfterValidator(_shares)] = Field(
        default=None, description="the share of each model's coefficients that is kept; 1 if omitted"
    )

    def change(self, piece: Piece) -> Tensor:
        from surgery.spectral.rank import meaningful_triplets

        if self._plain:
            return self.total(piece)
        m, n = piece.W.shape
        joint = piece.W.new_empty(m, n * len(self.models))
        vectors = joint.tensor_split(len(self.models), dim=1)
        for place, d in zip(vectors, self.each(piece), strict=True):
            place.copy_(d)
        U = meaningful_triplets(joint, min(joint.shape), piece.decomposer).U
        coefficients = [_largest(U.mT @ d, share) for d, share in zip(vectors, self._kept, strict=True)]
        merge = _elected_mean if self.method == "ties" else combination
        return U @ merge(self.factors, coefficients)

    @property
    def _kept(self) -> tuple[float, ...]:
        return self.density if self.density is not None else (1.0,) * len(self.models)

    @property
    def _plain(self) -> bool:
        """Whether this is task arithmetic, for which nothing is decomposed."""
        return self.method == "linear" and min(self._kept) == 1

    def workspace(self, shape: tuple[int, ...]) -> int:
        (m, n), k = shape, len(self.models)
        if self._plain:
            return cost.LIBRARY + 12 * m * n
        rank = min(m, k * n)
        joint = 4 * m * n * k
        merging = 4 * rank * n * (k + 7)
        return joint + max(4 * m * n, cost.decomposition((m, k * n), rank), 4 * m * rank + merging + 4 * m * n)

    def flops(self, shape: tuple[int, ...]) -> int:
        (m, n), k = shape, len(self.models)
        if self._plain:
            return 3 * k * m * n
        rank = min(m, k * n)
        return cost.flops((m, k * n), rank, matrices=1) + 2 * m * rank * n + 20 * k * rank * n


def _largest(C: Tensor, share: float) -> Tensor:
    """C with the entries outside of the largest `share` in size set to 0, in place."""
    kept = round(share * C.numel())
    if kept == C.numel():
        return C
    if not kept:
        return C.zero_()
    sizes = C.abs()
    smallest = sizes.reshape(-1).kthvalue(C.numel() - kept + 1).values
    return C.mul_(sizes >= smallest)


def _elected_mean(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """sum_i a_i w_i C_i / sum_i a_i w_i, a_i being 1 where w_i C_i has the sign of sum_i w_i C_i, and 0 elsewhere.

    0 where that sum is 0, and sum_i a_i w_i C_i where weights of both signs cancel.
    """
    elected = combination(weights, parts).sign_()
    total, divisor = elected.new_zeros(elected.shape), elected.new_zeros(elected.shape)
    for weight, C in zip(weights, parts, strict=True):
        agrees = ((C * elected).mul_(weight) > 0).to(C.dtype)
        total.addcmul_(C, agrees, value=weight)
        divisor.add_(agrees, alpha=weight)
    return total.div_(divisor.masked_fill_(divisor == 0, 1))
