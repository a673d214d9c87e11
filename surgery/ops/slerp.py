"""Spherical linear interpolation between two models."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from surgery.graded import Number, within
from surgery.ops.base import Role
from surgery.ops.merge import MergeOp

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Edit, Whole

COLLINEAR = 0.9995  # |cos| above which sin(angle) is too small to divide by, as in mergekit: the straight line then


class Slerp(MergeOp):
    """W' = sin((1 - t) a) / sin(a) W_0 + sin(t a) / sin(a) W_1, a being the angle between the two `models`.

    The angle is that of the whole tensors as vectors; a tensor of 0 has a right angle to all, as in mergekit. Where
    |cos a| > 0.9995 the result is (1 - t) W_0 + t W_1. t = 0 gives the first model, t = 1 the second. Norms are
    interpolated as the formula does, not preserved. Source: Shoemake 1985, Animating rotation with quaternion curves.
    """

    op: Literal["slerp"]
    models: tuple[Role, Role] = Field(description="the roles of the two models, at t = 0 and at t = 1")
    t: Annotated[Number, within(0, 1)] = Field(description="how far from the first model to the second, from 0 to 1")

    @property
    def passes(self) -> int:
        return 2

    def prepare(self, whole: Whole) -> Edit:
        from surgery.ops.combination import combination
        from surgery.ops.geometry import coefficients

        measured = coefficients(whole, self.merged, partial(slerp_coefficients, self.t), "tensors")
        return lambda piece: combination(measured(piece), self.merged(piece))

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 10 * math.prod(shape)


def slerp_coefficients(t: float, products: Tensor) -> Tensor:
    """The two factors of the formula, [2], from the inner products [2, 2] of the two vectors."""
    from surgery.ops.geometry import arc, lengths_and_cosines

    _, cosines = lengths_and_cosines(products)
    cosine = cosines[0, 1]
    return arc(t, cosine, cosine.abs() > COLLINEAR)
