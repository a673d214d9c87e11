"""Whom an edit or a comparison asks for a singular value decomposition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.spectral.triplets import Triplets, outer_triplets, singular_values

if TYPE_CHECKING:
    from torch import Tensor


class Decomposer:
    """Computes every decomposition anew. A subclass may have it already.

    The bits depend on the numbers of a matrix alone, not on its strides. `problem` is for a subclass that does less
    than it was made for: why, in a sentence.
    """

    problem: str | None = None

    def triplets(self, W: Tensor, head: int, tail: int = 0) -> Triplets:
        """`surgery.spectral.triplets.outer_triplets`."""
        return outer_triplets(W.contiguous(), head, tail)

    def values(self, W: Tensor) -> Tensor:
        """`surgery.spectral.triplets.singular_values`."""
        return singular_values(W.contiguous())
