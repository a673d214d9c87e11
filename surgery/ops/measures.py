"""What operations measure of whole tensors, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Piece, Whole

Vectors = Callable[["Piece"], Sequence["Tensor"]]


def gram(whole: Whole, vectors: Vectors) -> np.ndarray:
    """The inner products G[i, j] = <v_i, v_j> of the tensors that `vectors` gives of each piece, taken as vectors.

    Float64, [k, k]. Products within a piece are summed in the dtype of the arithmetic, float32 mostly, and pieces in
    float64: relative to |v_i| |v_j| the error is about 1e-6. (`torch.norm` sums in float32 throughout: a tensor of
    2^26 entries it makes 0.6 % too short, an embedding of 2.6e8 entries 4 %.)
    """
    total: dict[tuple[int, int], float] = {}
    for piece in whole.pieces():
        flat = [v.reshape(-1) for v in vectors(piece)]
        for i, j in combinations_with_replacement(range(len(flat)), 2):
            total[i, j] = total.get((i, j), 0.0) + float(torch.dot(flat[i], flat[j]))
    size = 1 + max(i for i, _ in total)
    return np.array([[total[min(i, j), max(i, j)] for j in range(size)] for i in range(size)])
