"""Model Breadcrumbs: neither the largest nor the smallest entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from surgery.ops.merge import PerModel, each_within
from surgery.ops.task_vector_sum import SparseTaskVectorSum

if TYPE_CHECKING:
    from surgery.ops.sparsifier import Sparsifier
    from surgery.ops.whole import Whole


class _Breadcrumbs(SparseTaskVectorSum):
    measuring: ClassVar[int] = 2
    gamma: Annotated[PerModel, each_within(0, 1)] = Field(
        default=0.01, validate_default=True, description="the share of the largest entries that is left out"
    )

    def sparsifiers(self, whole: Whole) -> list[Sparsifier]:
        from surgery.ops.magnitude_window import windows

        return windows(whole, self.vectors, self.density, self.gamma)


class Breadcrumbs(_Breadcrumbs):
    """W' = b + lambda sum_i w_i v_i, v_i being the task vector d_i without the share `gamma` of its entries that is
    largest in size, and without the smallest, so that the share `density` is left (see `magnitude_window`).

    Density 1 keeps all, whatever gamma, as in mergekit. Source: Davari and Belilovsky 2024, Model Breadcrumbs: scaling
    multi-task model merging with sparse masks, arXiv 2312.06795.
    """

    op: Literal["breadcrumbs"]


class BreadcrumbsTies(_Breadcrumbs):
    """As `breadcrumbs`, and of the v_i only those are summed whose entry has the elected sign (see `election`).

    Source: Davari and Belilovsky 2024, arXiv 2312.06795, with Yadav et al. 2023, arXiv 2306.01708.
    """

    op: Literal["breadcrumbs_ties"]
    elects: ClassVar[bool] = True
