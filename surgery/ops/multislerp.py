"""The mean direction of several models, or of their task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surgery.ops.base import Role
from surgery.ops.geometric import GeometricOp
from surgery.ops.merge import PerModel, normalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class MultiSlerp(GeometricOp):
    """v = L m / |m|: m = sum_i w_i v_i / |v_i| is the mean of the directions, L = sum_i w_i |v_i| that of the lengths.

    v_i are the tensors W_i as vectors, and W' = v; with `base` v_i = W_i - b, and W' = b + v. With `normalize`, the
    default, w_i are the shares of `weights`. A v_i that is 0 has no direction and adds nothing to m. Where the
    directions cancel (|m| below 0.3 % of sum |w|, where float32 leaves it no direction), v = sum_i w_i v_i.

    Source: mergekit's multislerp (Goddard 2025, goddard.blog). It then takes a step from m / |m| by the mean of the
    v_i / |v_i| in the tangent space at that point. This mean is sum_i w_i (v_i / |v_i| - <v_i / |v_i|, m> m / |m|^2) =
    m - m = 0, so there is no step, and none is made here. Where three or more directions cancel, mergekit stops.
    `karcher` is the mean for which the tangent vectors are 0 on the sphere itself.
    """

    op: Literal["multislerp"]
    models: tuple[Role, ...] = Field(min_length=2, description="the roles that are merged")
    weights: PerModel = Field(default=1.0, validate_default=True, description="one weight a model; equal if omitted")
    normalize: bool = Field(default=True, description="divide the weights by their sum")

    def check(self) -> None:
        self._shares()

    def _shares(self) -> Sequence[float]:
        return normalized(self.weights, optional=True) if self.normalize else self.weights

    def formula(self, products: Tensor) -> Tensor:
        return mean_direction(self._shares(), products)


def mean_direction(weights: Sequence[float], products: Tensor) -> Tensor:
    """The factors of v_i, [k], from the inner products [k, k] of the vectors."""
    import torch

    from surgery.ops.geometry import CANCELLED, lengths_and_cosines

    lengths, cosines = lengths_and_cosines(products)
    w = torch.tensor(weights, dtype=products.dtype)
    square = w @ cosines @ w  # |m|^2
    if square <= CANCELLED * w.abs().sum() ** 2:
        return w
    return torch.where(lengths > 0, (w @ lengths) * w / (lengths * square.sqrt()), 0.0)
