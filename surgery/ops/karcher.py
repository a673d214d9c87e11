"""The Karcher mean of models on the sphere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from surgery.ops.base import Role
from surgery.ops.geometric import GeometricOp
from surgery.ops.merge import PerModel, each_within, normalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

OPPOSITE = 1e-3  # of the distance to pi, below which the direction from a point to its opposite is lost in rounding


class Karcher(GeometricOp):
    """v = L m, with m the unit vector that minimises sum_i w_i a_i^2, a_i its angles with the v_i; L = sum_i w_i |v_i|.

    v_i are the tensors W_i as vectors, and W' = v; with `base` v_i = W_i - b, and W' = b + v. `weights` count by their
    shares. From the normalised mean of the directions u_i = v_i / |v_i| (where they cancel: from the first), m moves
    along the great circle in the direction and by the length of g = sum_i w_i a_i / sin(a_i) (u_i - cos(a_i) m), until
    |g| < `tol`, `max_iter` times at most. (In mergekit `tol` is also the length below which a vector counts as 0.) A
    vector that is 0 counts in L alone; one opposite to m has no direction from it, and is left out of that step. Only
    where all v_i are 0, so is v.

    Sources: Karcher 1977, Riemannian center of mass (the gradient); mergekit's karcher (no base, and equal
    weights). The iteration runs on k coefficients: m = sum_i c_i u_i throughout.
    """

    op: Literal["karcher"]
    models: tuple[Role, ...] = Field(min_length=2, description="the roles that are merged")
    weights: Annotated[PerModel, each_within(0)] = Field(
        default=1.0, validate_default=True, description="one weight a model, 0 or more; equal if omitted"
    )
    max_iter: int = Field(default=10, ge=0, description="the most steps that are taken")
    tol: float = Field(default=1e-5, gt=0, allow_inf_nan=False, description="the length of a step at which to stop")

    def check(self) -> None:
        self._shares()

    def _shares(self) -> Sequence[float]:
        return normalized(self.weights)

    def formula(self, products: Tensor) -> Tensor:
        return karcher_mean(self._shares(), products, self.max_iter, self.tol)


def karcher_mean(weights: Sequence[float], products: Tensor, max_iter: int, tol: float) -> Tensor:
    """The factors of v_i, [k], from the inner products [k, k] of the vectors."""
    import torch

    from surgery.ops.geometry import CANCELLED, lengths_and_cosines

    lengths, cosines = lengths_and_cosines(products)
    w = torch.tensor(weights, dtype=products.dtype)
    present = lengths > 0
    if not (w * present).any():
        return torch.zeros_like(w)
    shares = w * present / (w * present).sum()

    def length(c: Tensor) -> Tensor:
        return (c @ cosines @ c).clamp(min=0).sqrt()

    first = torch.zeros_like(w).index_fill(0, (w * present).nonzero()[0], 1.0)
    c = shares if length(shares) ** 2 > CANCELLED else first
    c = c / length(c)
    for _ in range(max_iter):
        cosine = (cosines @ c).clamp(-1, 1)
        angle = cosine.acos()
        along = torch.where(angle < math.pi - OPPOSITE, shares / torch.special.sinc(angle / math.pi), 0.0)
        step = along - (along * cosine).sum() * c
        size = length(step)
        if size < tol:
            break
        c = size.cos() * c + size.sin() / size * step
        c = c / length(c)
    return torch.where(present, (w @ lengths) * c / lengths, 0.0)
