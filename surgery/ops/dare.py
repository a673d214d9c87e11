"""DARE: drop at random, and rescale."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from surgery.ops.task_vector_sum import SparseTaskVectorSum

if TYPE_CHECKING:
    from surgery.ops.sparsifier import Sparsifier
    from surgery.ops.whole import Whole

NOTHING = 1e-12  # a density of which no tensor keeps an entry, and whose inverse is still small for float32


class _Dare(SparseTaskVectorSum):
    rescaling: ClassVar[int] = 0

    seed: int = Field(default=0, ge=0, description="what the random choice of entries depends on")
    rescale: bool = Field(default=True, description="divide what is kept by `density`")

    def sparsifiers(self, whole: Whole) -> list[Sparsifier]:
        from surgery.ops.random_drop import drop
        from surgery.ops.uniform import Uniform

        return [
            drop(density, Uniform(self.seed, role, whole.name))
            for role, density in zip(self.models, self.density, strict=True)
        ]

    def scales(self, whole: Whole, sparsifiers: list[Sparsifier]) -> list[float]:  # noqa: ARG002 - nothing is measured
        return [1 / density if density > NOTHING else 1.0 for density in self.density]


class DareLinear(_Dare):
    """W' = b + lambda sum_i w_i v_i, v_i being the task vector d_i of which each entry is kept with the probability
    `density`, and divided by it with `rescale`.

    mergekit's scale is |d_i|_1 over the norm of what was kept, the same up to the luck of the draw; the paper's needs
    no look at the whole. What is kept depends on `seed`, role and tensor alone. Source: Yu et al. 2024, Language
    models are super Mario, arXiv 2311.03099 (drop and rescale).
    """

    op: Literal["dare_linear"]


class DareTies(_Dare):
    """As `dare_linear`, and of the v_i only those are summed whose entry has the elected sign (see `election`).

    Source: Yu et al. 2024, arXiv 2311.03099, with Yadav et al. 2023, arXiv 2306.01708, the steps Elect and Disjoint
    Merge.
    """

    op: Literal["dare_ties"]
    elects: ClassVar[bool] = True
