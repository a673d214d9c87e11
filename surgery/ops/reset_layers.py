"""Put back whole tensors."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from surgery.ops.base import Kind, Op
from surgery.ops.spectral import OtherRole
from surgery.select import Select


class ResetLayers(Op):
    """The selected tensors become byte copies of those of the model `from`.

    There is no natural scope: without `select` the whole model would be replaced, so `select` is required.
    Source: Jin et al. 2025, RL Is Neither a Panacea Nor a Mirage, arXiv 2508.16546 (the first quarter of the layers).
    """

    kind: ClassVar[Kind] = "copy"

    op: Literal["reset_layers"]
    from_: OtherRole = Field(alias="from", description="the role of the model that is copied")
    select: Select = Field(description="the tensors that are copied")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.from_,)

    @property
    def uses_result(self) -> bool:
        return False
