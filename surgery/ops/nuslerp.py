"""Spherical interpolation of tensors, rows or columns, of two models or of their task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from surgery.ops.base import Kind, Role
from surgery.ops.geometric import Each, GeometricOp
from surgery.ops.merge import PerModel, normalized

if TYPE_CHECKING:
    from torch import Tensor

COLLINEAR = 1e-6  # of sin^2: up to this distance from 0 the straight line is the arc to 1e-7; at pi no arc is known


class NuSlerp(GeometricOp):
    """v = sin((1 - t) a) / sin(a) v_0 + sin(t a) / sin(a) v_1, with t = w_1 / (w_0 + w_1), a the angle of v_0 and v_1.

    v_i are the tensors W_i, and W' = v; with `base` v_i = W_i - b, and W' = b + v. The `angles` are those of whole
    `tensors`, taken as vectors, or one for each of the `rows`, or of the `columns`. Rows run along the last dimension,
    columns through all others: of a stack of matrices, through all of them. A tensor of one dimension has one angle.

    Where v_0 and v_1 are parallel or opposite, v = (1 - t) v_0 + t v_1. A vector that is 0 is at a right angle to every
    other. Weights that sum to 0 are refused (mergekit takes t = 1/2). The formula is Shoemake's, 1985. Source:
    mergekit's nuslerp, with `nuslerp_flatten: true`, its default, for `angles: tensors`; with `nuslerp_flatten: false`
    and `nuslerp_row_wise: false` for `angles: rows`, `nuslerp_row_wise: true` for `angles: columns` (which are along
    the first dimension there, of stacks too).
    """

    kind: ClassVar[Kind] = "rows"

    op: Literal["nuslerp"]
    models: tuple[Role, Role] = Field(description="the roles of the two models, at t = 0 and at t = 1")
    weights: PerModel = Field(
        default=1.0, validate_default=True, description="one weight a model, of which t is the second's share"
    )
    angles: Each = Field(
        default="tensors", description="what there is one angle for: whole tensors, each row, or each column"
    )

    def check(self) -> None:
        self._t()

    def _t(self) -> float:
        return normalized(self.weights)[1]

    @property
    def each(self) -> Each:
        return self.angles

    def formula(self, products: Tensor) -> Tensor:
        from surgery.ops.geometry import arc, lengths_and_cosines

        _, cosines = lengths_and_cosines(products)
        cosine = cosines[0, 1]
        return arc(self._t(), cosine, 1 - cosine**2 <= COLLINEAR)
