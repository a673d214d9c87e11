"""Memory and arithmetic of the spectral edits; free of torch, so that a plan can use it."""

from __future__ import annotations


def padded(n: int, head: int) -> int | None:
    """How many leading eigenvectors the float32 route of `triplets` takes for `head` triplets, or None if it does not pay.

    The extra ones, a tenth of n and at least 16, put the outer boundary of the subspace a wide gap away from `head`.
    """
    k = head + max(16, n // 10)
    return k if head and k <= 0.6 * n else None
