"""Merges whose result is a sum of vectors, with coefficients that follow from the vectors' inner products.

All arithmetic of such a merge is on the matrix of inner products, of k by k numbers for k models: a formula takes it
and gives the k coefficients. The tensors are read to measure the products, and once more to add them up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surgery.ops.measures import Vectors, gram

if TYPE_CHECKING:
    from surgery.ops.combination import Coefficient
    from surgery.ops.geometric import Each
    from surgery.ops.whole import Piece, Whole

# Of |sum w_i u_i|^2 relative to (sum |w_i|)^2, |u_i| = 1: ten times what the rounding of float32 sums leaves of it.
CANCELLED = 1e-5

Formula = Callable[[Tensor], Tensor]
"""From inner products [k, k, ...] to coefficients [k, ...], in float64."""


def coefficients(
    whole: Whole, vectors: Vectors, formula: Formula, each: Each
) -> Callable[[Piece], Sequence[Coefficient]]:
    """What a formula gives for each tensor as one vector, for its rows or for its columns: for a piece, k coefficients
    that broadcast with it.

    A tensor of no or one dimension is one row. Rows run along the last dimension, columns along all others. Pieces
    are 2-D for rows and columns. Rows take one pass, the others one more, which is made here.
    """
    if each == "tensors":
        found = formula(torch.from_numpy(gram(whole, vectors))).tolist()
        return lambda _: found
    if each == "rows" or len(whole.shape) < 2:
        return lambda piece: list(formula(row_products(vectors(piece))).unsqueeze(-1).to(piece.W))
    columns = formula(column_products(whole, vectors))
    return lambda piece: list(columns.to(piece.W))


def row_products(vectors: Sequence[Tensor]) -> Tensor:
    """The inner products <v_i, v_j> of the rows of k matrices [rows, columns]: float64, [k, k, rows]."""
    return _symmetric(vectors, -1)


def column_products(whole: Whole, vectors: Vectors) -> Tensor:
    """Those of the columns, over all pieces: float64, [k, k, columns]."""
    return reduce(torch.add, (_symmetric(vectors(piece), 0) for piece in whole.pieces()))


def _symmetric(vectors: Sequence[Tensor], dim: int) -> Tensor:
    """Summed along `dim` in the dtype of the vectors, in which the sum is pairwise: good to about 1e-7."""
    k = len(vectors)
    products = {
        (i, j): (vectors[i] * vectors[j]).sum(dim).double() for i, j in combinations_with_replacement(range(k), 2)
    }
    return torch.stack([torch.stack([products[min(i, j), max(i, j)] for j in range(k)]) for i in range(k)])


def lengths_and_cosines(products: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths [k, ...] and cosines [k, k, ...] of k vectors, from their inner products [k, k, ...].

    A vector of length 0 has the cosine 0 with every other, and with itself.
    """
    lengths = products.diagonal().movedim(-1, 0).sqrt()
    sizes = lengths.unsqueeze(0) * lengths.unsqueeze(1)
    return lengths, torch.where(sizes > 0, products / sizes, 0.0).clamp(-1, 1)


def arc(t: float, cosines: Tensor, straight: Tensor) -> Tensor:
    """sin((1 - t) a) / sin(a) and sin(t a) / sin(a) for the angles a with these cosines [...]: [2, ...].

    They lead along the great circle between two vectors. 1 - t and t, along the line, where `straight`.
    Source: Shoemake 1985, Animating rotation with quaternion curves.
    """
    angle = cosines.where(~straight, 0.0).acos()
    curved = torch.stack([((1 - t) * angle).sin(), (t * angle).sin()]) / angle.sin()
    line = torch.stack([torch.full_like(angle, 1 - t), torch.full_like(angle, t)])
    return torch.where(straight, line, curved)
