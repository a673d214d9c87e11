"""The Gram matrix W^T W."""

from __future__ import annotations

import torch
from torch import Tensor

from surgery.spectral.cost import ROW_BLOCK

# Columns of G computed at a time. Torch has no syrk; leaving out what lies above the diagonal blocks costs
# 0.29 s instead of 0.48 s for 8192x2048 in float32 on one core; blocks of 128 and of 1024 are slower.
COLUMN_BLOCK = 512


def gram(W: Tensor, dtype: torch.dtype) -> Tensor:
    """G = W^T W (n x n) for W (m x n), accumulated in `dtype`; only its lower triangle is defined."""
    m, n = W.shape
    G = torch.zeros(n, n, dtype=dtype, device=W.device)
    for i in range(0, m, ROW_BLOCK):
        rows = W[i : i + ROW_BLOCK].to(dtype)
        for j in range(0, n, COLUMN_BLOCK):
            G[j:, j : j + COLUMN_BLOCK].addmm_(rows[:, j:].mT, rows[:, j : j + COLUMN_BLOCK])
    return G


def symmetric(G: Tensor) -> Tensor:
    """The whole of a symmetric matrix of which the lower triangle is defined."""
    return G.tril() + G.tril(-1).mT


def symmetrize_(G: Tensor) -> Tensor:
    """`symmetric` in place, in blocks: 8 times faster for n = 2048, as nothing is allocated."""
    for j in range(0, G.shape[0], COLUMN_BLOCK):
        rest = j + COLUMN_BLOCK
        G[j:rest, j:rest] = symmetric(G[j:rest, j:rest])
        G[j:rest, rest:] = G[rest:, j:rest].mT
    return G
