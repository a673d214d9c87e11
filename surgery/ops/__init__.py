"""The operations that a recipe's steps may name. A new one is a file here, its import, and its line in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from surgery.ops.arcee_fusion import ArceeFusion
from surgery.ops.base import Op
from surgery.ops.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from surgery.ops.consensus import Consensus
from surgery.ops.dare import DareLinear, DareTies
from surgery.ops.della import Della, DellaLinear
from surgery.ops.emr import Emr
from surgery.ops.iso import IsoC, IsoCts
from surgery.ops.karcher import Karcher
from surgery.ops.knots import Knots
from surgery.ops.linear import Linear
from surgery.ops.lines import Lines
from surgery.ops.model_stock import ModelStock
from surgery.ops.multislerp import MultiSlerp
from surgery.ops.nearswap import NearSwap
from surgery.ops.nuslerp import NuSlerp
from surgery.ops.passthrough import Passthrough
from surgery.ops.procrustes_align import ProcrustesAlign
from surgery.ops.ram import Ram, RamPlus
from surgery.ops.reset_layers import ResetLayers
from surgery.ops.restore_directions import RestoreDirections
from surgery.ops.restore_values import RestoreValues
from surgery.ops.sce import Sce
from surgery.ops.slerp import Slerp
from surgery.ops.suppress_intruders import SuppressIntruders
from surgery.ops.swap_directions import SwapDirections
from surgery.ops.task_arithmetic import TaskArithmetic
from surgery.ops.ties import Ties
from surgery.ops.truncate_rank import TruncateRank
from surgery.ops.tsv import Tsv
from surgery.ops.wise_ft import WiseFt

__all__ = ["OPS", "Step"]

_TABLE: tuple[type[Op], ...] = (
    RestoreDirections,
    SwapDirections,
    RestoreValues,
    ResetLayers,
    TruncateRank,
    Linear,
    Slerp,
    NuSlerp,
    MultiSlerp,
    Karcher,
    ModelStock,
    NearSwap,
    ArceeFusion,
    Passthrough,
    WiseFt,
    Lines,
    TaskArithmetic,
    Ties,
    DareLinear,
    DareTies,
    Breadcrumbs,
    BreadcrumbsTies,
    Della,
    DellaLinear,
    Sce,
    Ram,
    RamPlus,
    Consensus,
    Emr,
    Tsv,
    IsoC,
    IsoCts,
    Knots,
    SuppressIntruders,
    ProcrustesAlign,
)
OPS: dict[str, type[Op]] = {get_args(op.model_fields["op"].annotation)[0]: op for op in _TABLE}

if TYPE_CHECKING:
    Step = Op
else:
    Step = Annotated[Union[_TABLE], Field(discriminator="op")]  # noqa: UP007 - of as many as there are
