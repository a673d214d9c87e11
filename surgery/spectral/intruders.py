"""Intruder directions: singular vectors that a fine-tuning brought in, since no earlier one resembles them.

Of the earlier singular vectors A (m x h) and the later ones B (m x h'), both with orthonormal columns, b_j is an
intruder when max_i |cos(a_i, b_j)| < threshold.

Source: Shuttleworth et al. 2024, LoRA vs Full Fine-tuning: An Illusion of Equivalence, arXiv 2410.21228.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

INTRUDER_COSINE = 0.5  # a direction whose |cos| with every earlier one is below this is an intruder, as there


def best_cosines(C: Tensor) -> Tensor:
    """max_i |cos| between a_i and b_j for each j (h', float64, at most 1), from C = A^T B (h x h').

    How well one earlier direction meets b_j; 0 without any.
    """
    if not len(C):
        return C.new_zeros(C.shape[1], dtype=torch.float64)
    largest: Tensor = torch.linalg.vector_norm(C, ord=float("inf"), dim=0)
    return largest.double().clamp_max(1)


def are_intruders(C: Tensor, threshold: float = INTRUDER_COSINE) -> Tensor:
    """Which of the b_j no a_i meets with |cos| >= threshold (h', bool), from C = A^T B (h x h')."""
    return best_cosines(C) < threshold
