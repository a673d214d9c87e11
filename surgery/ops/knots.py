"""Merge task vectors in the basis that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from surgery.ops.merge import PerModel, each_within
from surgery.ops.spectral_merge import SpectralMergeOp
from surgery.ops.task_vector_sum import COUNTS_BYTES
from surgery.spectral import cost

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.sparsifier import Sparsifier
    from surgery.ops.whole import Edit, Piece, Whole


class Knots(SpectralMergeOp):
    """W' = b + alpha U C, C merged of the coefficients C_i = S V_i^T of the task vectors in their common basis U.

    [d_1 ... d_k] = U S [V_1^T ... V_k^T] for d_i = W_i - b, so that d_i = U C_i. `method`:

    - `ties`: of each C_i the share `density` of the entries that are largest in size is kept, at least one, and all
      that equal the smallest of these. For each entry the sign of sum_i w_i C_i is elected, and C is the mean, weighted
      with w_i, of the entries that have it; 0 where the sum is 0.
    - `linear`: the same is kept, and C = sum_i w_i C_i; with density 1 that is task arithmetic, as U U^T d_i = d_i.
    - `dare_ties`, `dare_linear`: each entry is kept with the probability `density` instead, and divided by it. Which
      depends on `seed`, role and tensor alone.

    The signs of U's columns cancel. Directions whose value is 0 up to rounding are left out, as they are arbitrary; of
    equal singular values any basis may come out, and the result depends on it. The paper writes of V_i, its code merges
    S V_i, as here; only what `ties` keeps depends on that. There the entries of all matrices compete, here of one.
    Sources: Stoica et al. 2024, Model merging with SVD to tie the Knots (KnOTS), arXiv 2410.19735; Yadav et al. 2023,
    TIES-Merging, arXiv 2306.01708; Yu et al. 2024, arXiv 2311.03099 (DARE).
    """

    op: Literal["knots"]
    method: Literal["ties", "linear", "dare_ties", "dare_linear"] = Field(
        default="ties", description="how the coefficients are merged"
    )
    density: Annotated[PerModel, each_within(0, 1)] = Field(
        default=1.0, validate_default=True, description="the share of each model's coefficients that is kept"
    )
    seed: int = Field(default=0, ge=0, description="what the random choice of entries depends on")

    @property
    def _plain(self) -> bool:
        """Whether this is task arithmetic, for which nothing is decomposed."""
        return self.method in ("linear", "dare_linear") and min(self.density) == 1

    @property
    def _drops(self) -> bool:
        return self.method.startswith("dare")

    def prepare(self, whole: Whole) -> Edit:
        if self._plain:
            return lambda piece: self.onto_base(piece, self.total(piece))
        return lambda piece: self.onto_base(piece, self._merged(whole.name, piece))

    def _sparsifiers(self, name: str, piece: Piece, parts: list[Tensor]) -> list[Sparsifier]:
        """What makes each of the coefficients sparse: they are a whole of one piece."""
        from surgery.ops.random_drop import drop
        from surgery.ops.trim import trims
        from surgery.ops.uniform import Uniform
        from surgery.ops.whole import Whole

        if self._drops:
            each = zip(self.models, self.density, strict=True)
            return [drop(density, Uniform(self.seed, role, name)) for role, density in each]
        whole = Whole(name, tuple(parts[0].shape), lambda: iter([piece]))
        return trims(whole, lambda _: parts, self.density)

    def _merged(self, name: str, piece: Piece) -> Tensor:
        from surgery.ops.combination import combination
        from surgery.ops.election import agreeing_sum
        from surgery.spectral.rank import meaningful_triplets

        m, n = piece.W.shape
        joint = piece.W.new_empty(m, n * len(self.models))
        vectors = joint.tensor_split(len(self.models), dim=1)
        for place, d in zip(vectors, self.each(piece), strict=True):
            place.copy_(d)
        U = meaningful_triplets(joint, min(joint.shape), piece.decomposer).U
        parts = [U.mT @ d for d in vectors]
        for i, sparsify in enumerate(self._sparsifiers(name, piece, parts)):
            parts[i] = sparsify(parts[i], piece.first)
        factors = [
            w / (density or 1) if self._drops else w for w, density in zip(self.weights, self.density, strict=True)
        ]
        C = combination(factors, parts)
        if self.method.endswith("ties"):
            C = agreeing_sum(C.sign_(), parts, factors, self.weights)
        return U @ C

    def workspace(self, shape: tuple[int, ...]) -> int:
        (m, n), k = shape, len(self.models)
        if self._plain:
            return cost.LIBRARY + 12 * m * n
        rank = min(m, k * n)
        merging = 4 * rank * n * (k + 7) + COUNTS_BYTES * (k + 1)
        return 4 * m * n * (k + 1) + max(cost.decomposition((m, k * n), rank), 4 * m * rank + merging)

    def flops(self, shape: tuple[int, ...]) -> int:
        (m, n), k = shape, len(self.models)
        if self._plain:
            return 3 * k * m * n
        rank = min(m, k * n)
        return cost.flops((m, k * n), rank, matrices=1) + 2 * m * rank * n + 20 * k * rank * n
