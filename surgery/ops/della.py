"""DELLA: drop at random, the smaller the likelier, and rescale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from surgery.graded import Number
from surgery.ops.base import Kind
from surgery.ops.merge import PerModel, each_within
from surgery.ops.task_vector_sum import SparseTaskVectorSum

if TYPE_CHECKING:
    from surgery.ops.sparsifier import Sparsifier
    from surgery.ops.whole import Whole


class _Della(SparseTaskVectorSum):
    kind: ClassVar[Kind] = "rows"

    epsilon: Annotated[PerModel, each_within(0, 0.5)] = Field(
        default=0.15,
        validate_default=True,
        description="half the distance between the least and the largest probability",
    )
    seed: int = Field(default=0, ge=0, description="what the random choice of entries depends on")
    rescale: bool = Field(default=True, description="keep the L1 norm of each task vector")

    def check(self) -> None:
        super().check()
        for role, density, epsilon in zip(self.models, self.density, self.epsilon, strict=True):
            _check(role, density, epsilon)

    def sparsifiers(self, whole: Whole) -> list[Sparsifier]:
        from surgery.ops.magprune import magprune
        from surgery.ops.uniform import Uniform

        return [
            magprune(density, epsilon, Uniform(self.seed, role, whole.name), twice=self.rescale)
            for role, density, epsilon in zip(self.models, self.density, self.epsilon, strict=True)
        ]

    def kept(self, shape: tuple[int, ...]) -> int:
        return len(self.models) * -(-math.prod(shape) // 8) if self.passes > 1 else 0

    def workspace(self, shape: tuple[int, ...]) -> int:
        from surgery.ops.magprune import BLOCK

        block = min(math.prod(shape), BLOCK + (shape[-1] if shape else 0))
        return super().workspace(shape) + 9 * math.prod(shape) + 24 * block  # random numbers and masks; a block's ranks

    def flops(self, shape: tuple[int, ...]) -> int:
        comparisons = max(1, math.ceil(math.log2(max(shape[-1], 2)))) if shape else 1
        return super().flops(shape) + comparisons * len(self.models) * math.prod(shape)


def _check(role: str, density: Number, epsilon: Number) -> None:
    if 0 < density < 1 and not (epsilon <= density and density + epsilon <= 1):
        raise ValueError(
            f"`{role}` with density {density:g} and epsilon {epsilon:g} would keep entries with probabilities from "
            f"{density - epsilon:g} to {density + epsilon:g}; choose them so that these lie between 0 and 1"
        )


class DellaLinear(_Della):
    """W' = b + lambda sum_i w_i v_i, v_i being the task vector d_i of which an entry is kept with a probability between
    density - epsilon and density + epsilon that rises with its rank by size in its row (see `magprune`), rescaled.

    The paper divides each entry by its probability; here, as in mergekit, the whole has one scale, |d_i|_1 over the
    norm of what was kept. A vector is one row; rows of a stack of experts lie along its last dimension. Density 1 keeps
    all, whatever epsilon. What is kept depends on `seed`, role and tensor alone. Source: Deep et al. 2024, arXiv
    2406.11617.
    """

    op: Literal["della_linear"]


class Della(_Della):
    """As `della_linear`, and of the v_i only those are summed whose entry has the elected sign (see `election`), and
    divided by the sum of their weights.

    Source: Deep et al. 2024, DELLA-Merging: reducing interference in model merging through magnitude-based sampling,
    arXiv 2406.11617.
    """

    op: Literal["della"]
    elects: ClassVar[bool] = True
    normalize: bool = Field(default=True, description="divide by the sum of the weights that agree")
