"""Keep the singular directions, take the singular values of another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from surgery.ops.base import RESULT
from surgery.ops.spectral import TwoModelOp
from surgery.spectral import cost

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer


class RestoreValues(TwoModelOp):
    """W' = U S_b V^T for W = U S V^T, the running tensor, and b = U_b S_b V_b^T, that of the model `from`.

    The control experiment of Jin et al. 2025, RL Fine-Tuning Heals OOD Forgetting in SFT, arXiv 2509.12235: it changes
    next to nothing.
    """

    op: Literal["restore_values"]

    def apply(self, W: Tensor, sources: Mapping[str, Tensor], decomposer: Decomposer) -> Tensor:
        """W' for a matrix W. Raises NumericalError for NaN, infinity, or no convergence."""
        return self._with_values(directions=W, values=self._finite_source(W, sources), decomposer=decomposer)

    def decomposes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        return {RESULT: (min(shape), 0), self.from_: (0, 0)}

    def workspace(self, shape: tuple[int, ...]) -> int:
        return cost.workspace(shape, min(shape))

    def flops(self, shape: tuple[int, ...]) -> int:
        return cost.flops(shape, min(shape))
