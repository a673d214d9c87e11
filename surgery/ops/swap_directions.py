"""Keep the singular values, take the singular directions of another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from surgery.ops.base import RESULT
from surgery.ops.spectral import TwoModelOp
from surgery.spectral import cost

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer


class SwapDirections(TwoModelOp):
    """W' = U_b S V_b^T for W = U S V^T, the running tensor, and b = U_b S_b V_b^T, that of the model `from`.

    S is known to 1e-8 of its largest value; among equal singular values of b the pairing with S is arbitrary.
    Source: Jin et al. 2025, RL Fine-Tuning Heals OOD Forgetting in SFT, arXiv 2509.12235 (RL values forced onto SFT
    directions).
    """

    op: Literal["swap_directions"]

    def apply(self, W: Tensor, sources: Mapping[str, Tensor], decomposer: Decomposer) -> Tensor:
        """W' for a matrix W. Raises NumericalError for NaN, infinity, or no convergence."""
        return self._with_values(directions=self._finite_source(W, sources), values=W, decomposer=decomposer)

    def decomposes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        return {self.from_: (min(shape), 0), RESULT: (0, 0)}

    def workspace(self, shape: tuple[int, ...]) -> int:
        return cost.workspace(shape, min(shape))

    def flops(self, shape: tuple[int, ...]) -> int:
        return cost.flops(shape, min(shape))
