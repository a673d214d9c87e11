"""What the merges have in common whose coefficients follow from the inner products of what they merge."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from surgery.ops.merge import VectorOp

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Edit, Whole

Each = Literal["tensors", "rows", "columns"]


class GeometricOp(VectorOp):
    """sum_i c_i v_i, v_i being the tensors of `models` or their differences from `base`: a subclass gives c_i.

    `each` says what one vector is: a whole tensor, each row, or each column, so that each has its own c_i.
    """

    @property
    def each(self) -> Each:
        """What one vector is. For `rows` and `columns` the operation is of the kind `rows`."""
        return "tensors"

    def formula(self, products: Tensor) -> Tensor:
        """The c_i, [k, ...], from the inner products <v_i, v_j> of k vectors, [k, k, ...]; float64."""
        raise NotImplementedError

    @property
    def passes(self) -> int:
        return 1 if self.each == "rows" else 2

    def prepare(self, whole: Whole) -> Edit:
        from surgery.ops.geometry import coefficients

        measured = coefficients(whole, self.vectors, self.formula, self.each)
        return lambda piece: self.combined(piece, measured(piece))

    def workspace(self, shape: tuple[int, ...]) -> int:
        k, elements = len(self.models), math.prod(shape)
        based = self.base is not None
        if self.each == "tensors":  # all differences to measure, or the sum and one difference
            return 4 * elements * (max(k, 2) if based else 1)
        vectors = shape[0] if self.each == "rows" else shape[-1]
        return 4 * elements * (k + 1 if based else 1) + 8 * vectors * (4 * k * k + 8)

    def flops(self, shape: tuple[int, ...]) -> int:
        k = len(self.models)
        return k * (k + 5) * math.prod(shape)  # k (k + 1) for the products, 2 k for the sum, 2 k for differences
