"""The operations that a recipe's steps may name. A new one is a file here, its import, and its line in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from surgery.ops.base import Op
from surgery.ops.iso import IsoC, IsoCts
from surgery.ops.knots import Knots
from surgery.ops.linear import Linear
from surgery.ops.reset_layers import ResetLayers
from surgery.ops.restore_directions import RestoreDirections
from surgery.ops.restore_values import RestoreValues
from surgery.ops.slerp import Slerp
from surgery.ops.suppress_intruders import SuppressIntruders
from surgery.ops.swap_directions import SwapDirections
from surgery.ops.truncate_rank import TruncateRank
from surgery.ops.tsv import Tsv

__all__ = ["OPS", "Step"]

_TABLE: tuple[type[Op], ...] = (
    RestoreDirections,
    SwapDirections,
    RestoreValues,
    ResetLayers,
    TruncateRank,
    Linear,
    Slerp,
    Tsv,
    IsoC,
    IsoCts,
    Knots,
    SuppressIntruders,
)
OPS: dict[str, type[Op]] = {get_args(op.model_fields["op"].annotation)[0]: op for op in _TABLE}

if TYPE_CHECKING:
    Step = Op
else:
    Step = Annotated[Union[_TABLE], Field(discriminator="op")]  # noqa: UP007 - of as many as there are
