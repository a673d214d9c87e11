"""The operations that a recipe's steps may name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from surgery.ops.base import Op
from surgery.ops.linear import Linear
from surgery.ops.reset_layers import ResetLayers
from surgery.ops.restore_directions import RestoreDirections
from surgery.ops.restore_values import RestoreValues
from surgery.ops.slerp import Slerp
from surgery.ops.swap_directions import SwapDirections
from surgery.ops.truncate_rank import TruncateRank

__all__ = [
    "OPS",
    "Linear",
    "ResetLayers",
    "RestoreDirections",
    "RestoreValues",
    "Slerp",
    "Step",
    "SwapDirections",
    "TruncateRank",
]

OPS: dict[str, type[Op]] = {
    "restore_directions": RestoreDirections,
    "swap_directions": SwapDirections,
    "restore_values": RestoreValues,
    "reset_layers": ResetLayers,
    "truncate_rank": TruncateRank,
    "linear": Linear,
    "slerp": Slerp,
}

Step = Annotated[
    RestoreDirections | SwapDirections | RestoreValues | ResetLayers | TruncateRank | Linear | Slerp,
    Field(discriminator="op"),
]
