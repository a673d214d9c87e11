"""Rotate the value and output projections of one model onto another's before they are merged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from surgery.layers import LayerRange
from surgery.ops.base import Kind, Op
from surgery.ops.spectral import OtherRole
from surgery.select import Select

if TYPE_CHECKING:
    from surgery.ops.whole import Edit, Whole

USUAL_HEAD = 128  # of the models that take time


class ProcrustesAlign(Op):
    """V' = R^T V, b' = R^T b and O_h' = O_h R for each key/value head: V (d x hidden) its rows of the value projection,
    b (d) those of its bias, O_h (hidden x d) the columns of the output projection of each query head h that uses it.

    An attention head adds O_h sum_t w_t (V x_t + b) to the stream, and O_h R R^T = O_h: for any orthogonal R the model
    is the same function. R is the one for which its weights are nearest to those of the model `from`: of

        |R^T [V, b] - [V_f, b_f]|_F^2 + sum_h |O_h R - O_f,h|_F^2 = const - 2 tr(R^T M),
        M = V V_f^T + b b_f^T + sum_h O_h^T O_f,h,

    the second term is least for R = P Q^T from the SVD M = P diag(s) Q^T, since tr(R^T M) = sum_i s_i (P^T R Q)_ii <=
    sum_i s_i. R = 1 is among the candidates, so the distance never grows; det R = -1 is allowed. In exact arithmetic,
    that is: V', b' and O' are rounded to the output's dtype, which for bfloat16 moves them by up to 2^-9 of each entry.

    It is not so for queries and keys under rotary embeddings, which it leaves alone. A head whose weights are those of
    `from` stays as it is, to the bit. Where M is singular, R is the least rotation among the best ones; M = 0 gives
    R = 1. The three tensors are edited together or not at all, and R is found anew, in float64, for each of them.

    Source: Schoenemann 1966, A generalized solution of the orthogonal Procrustes problem, Psychometrika 31; Golub and
    Van Loan, Matrix Computations, 4th edition, section 6.4.1.
    """

    kind: ClassVar[Kind] = "heads"
    natural: ClassVar[Select] = Select(layers=LayerRange("all"), tensors=("attention",))

    op: Literal["procrustes_align"]
    from_: OtherRole = Field(alias="from", description="the role of the model whose gauge is taken over")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.from_,)

    def prepare(self, whole: Whole) -> Edit:
        from surgery.ops.head_rotations import rotations, turned

        assert whole.attention is not None
        found, part = rotations(whole.attention), whole.attention.part
        return lambda piece: turned(piece.W, found, part)

    def workspace(self, shape: tuple[int, ...]) -> int:
        """The result, and of one head what is turned, before and after. What R takes is in `Partners`."""
        return 4 * 3 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        """Of the products with R, for heads of the usual size."""
        return 2 * USUAL_HEAD * math.prod(shape)
