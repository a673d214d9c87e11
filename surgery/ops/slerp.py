"""Spherical linear interpolation between two models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from surgery.graded import Number, within
from surgery.ops.base import Role
from surgery.ops.merge import MergeOp

if TYPE_CHECKING:
    import numpy as np

    from surgery.ops.whole import Edit, Whole

COLLINEAR = 0.9995  # |cos| above which sin(angle) is too small to divide by, as in mergekit: the straight line then
TINY = 1e-8  # a norm below this has no direction


class Slerp(MergeOp):
    """W' = sin((1 - t) a) / sin(a) W_0 + sin(t a) / sin(a) W_1, a being the angle between the two `models`.

    The angle is that of the whole tensors as vectors. Where |cos a| > 0.9995, or one of them is 0, the result is
    (1 - t) W_0 + t W_1. t = 0 gives the first model, t = 1 the second. Norms are interpolated as the formula does, not
    preserved. Source: Shoemake 1985, Animating rotation with quaternion curves, section 3.3.
    """

    op: Literal["slerp"]
    models: tuple[Role, Role] = Field(description="the roles of the two models, at t = 0 and at t = 1")
    t: Annotated[Number, within(0, 1)] = Field(description="how far from the first model to the second, from 0 to 1")

    @property
    def passes(self) -> int:
        return 2

    def prepare(self, whole: Whole) -> Edit:
        from surgery.ops.combination import combination
        from surgery.ops.measures import gram

        coefficients = slerp_coefficients(self.t, gram(whole, self.merged))
        return lambda piece: combination(coefficients, self.merged(piece))

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 10 * math.prod(shape)


def slerp_coefficients(t: float, products: np.ndarray) -> tuple[float, float]:
    """The two factors of the formula, from the inner products of the two vectors."""
    norms = [math.sqrt(products[i, i]) for i in range(2)]
    if min(norms) <= TINY:
        return 1 - t, t
    cosine = max(-1.0, min(1.0, float(products[0, 1]) / (norms[0] * norms[1])))
    if abs(cosine) > COLLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
