"""Arcee Fusion: the entries of a model whose change matters most, the rest from its base."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from surgery.ops.base import Kind, Role
from surgery.ops.merge import TaskVectorOp, of_role
from surgery.ops.task_vector_sum import COUNTS_BYTES

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Edit, Piece, Whole

FENCE = 1.5  # how many interquartile ranges above the median importance is outstanding
LARGEST_EXPONENT = 80.0  # whose power float32 holds; weights that differ by as much are not told apart from broken ones


class ArceeFusion(TaskVectorOp):
    """W' = W_1 where the importance s >= m + 1.5 (q3 - q1), else b; q1, m, q3 are the quartiles of s over the tensor.

    s_ij = |W_1 - b|_ij KL(p_i || q_i), with p_i and q_i the softmaxes of row i of W_1 and of b. A tensor of one
    dimension is one row. The quartiles are exact: the floor(k (n - 1) / 4)-th of the n scores, counted from 0 upwards.
    Where most scores are equal, as in tensors that did not change, the threshold is that score and all entries that
    have it are taken; of equal models either is the result. Passes: one for the divergences and the upper bits of the
    scores, one for the lower bits, one to edit.

    Source: mergekit's arcee_fusion (Arcee 2024, arcee.ai), which takes the quartiles of a random million of the scores,
    drawn anew each time, and computes the divergence by its definition in the dtype of the files, after adding 1e-8 to
    p and q. In float64 its code takes the entries that are taken here, but for 3 of a million at the threshold; in
    float32 rounding makes its divergences wrong by 60 % (the median, of random rows that differ by 4e-4, 2 % of their
    size), and 8 % of the entries come from the other model, in bfloat16 7 to 11 %.
    """

    kind: ClassVar[Kind] = "rows"

    op: Literal["arcee_fusion"]
    models: tuple[Role] = Field(description="the role of the model, W_1, of which the important changes are kept")

    @property
    def passes(self) -> int:
        return 3

    def prepare(self, whole: Whole) -> Edit:
        import torch

        from surgery.ops.magnitudes import Magnitudes

        n, columns = whole.elements, whole.shape[-1] if whole.shape else 1
        divergences = torch.empty(
            n // columns if n else 0, dtype=torch.float64
        )  # one block: crumbs would split the heap
        known: set[int] = set()  # offsets of pieces

        def scores(piece: Piece) -> Tensor:
            b, (d,) = self.task_vectors(piece)
            row = piece.first // max(columns, 1)
            found = divergences[row : row + len(d)]
            if piece.first not in known:
                known.add(piece.first)
                found.copy_(row_divergences(self.merged(piece)[0], b))
            return d.abs_().mul_(found.to(d).unsqueeze(-1))

        threshold = 0.0
        if n:
            ranks = [n - k * (n - 1) // 4 for k in (1, 2, 3)]
            q1, median, q3 = Magnitudes(whole, lambda piece: [scores(piece)]).largest([ranks])[0]
            threshold = median + FENCE * (q3 - q1)

        def edit(piece: Piece) -> Tensor:
            found = scores(piece)
            merged = of_role(piece, self.base).where(found.float() < threshold, self.merged(piece)[0])
            return merged.sub_(found.mul_(0))  # NaN where a score is none: a broken model is not passed over

        return edit

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * 8 * math.prod(shape) + 2 * COUNTS_BYTES

    def kept(self, shape: tuple[int, ...]) -> int:
        return 8 * math.prod(shape[:-1])

    def flops(self, shape: tuple[int, ...]) -> int:
        return 40 * math.prod(shape)


def row_divergences(W: Tensor, b: Tensor) -> Tensor:
    """KL(p || q) = sum_j p_j log(p_j / q_j) of the softmaxes of the rows of W and b, [rows].

    With d = W - b and m = sum_j p_j d_j this is log(sum_j p_j exp(m - d_j)), in which nothing cancels where d is small.
    In float32, of rows of 4096 that differ by 1e-3, the relative error is 5e-5, that of the definition 1; it grows as
    1 / |d|, that of the definition as 1 / |d|^2.
    """
    import torch

    d = torch.sub(W, b)
    p = W.softmax(-1)
    away = torch.sub((p * d).sum(-1, keepdim=True), d).clamp_(max=LARGEST_EXPONENT)
    return away.expm1_().mul_(p).sum(-1).log1p_().clamp_(min=0)
