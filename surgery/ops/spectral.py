"""What the operations on singular directions and values have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from surgery.layers import LayerRange
from surgery.ops.base import RESULT, Kind, Op, Role
from surgery.select import Select

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer


EDITED = "the tensor being edited"


def _other_model(name: str) -> str:
    if name == RESULT:
        raise ValueError(f"found `{RESULT}`, {EDITED}; expected another model's role")
    return name


OtherRole = Annotated[Role, AfterValidator(_other_model)]


class SpectralOp(Op):
    """An operation on one 2-D weight by its singular value decomposition."""

    kind: ClassVar[Kind] = "matrix"
    natural: ClassVar[Select] = Select(layers=LayerRange("all"), tensors=("attention", "mlp"))


class TwoModelOp(SpectralOp):
    """A spectral operation that combines the running tensor W with the tensor b of the model `from`."""

    from_: OtherRole = Field(alias="from", description="the role of the other model")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.from_,)

    def _finite_source(self, W: Tensor, sources: Mapping[str, Tensor]) -> Tensor:
        """b; NumericalError if it or W has NaN or infinite entries."""
        from surgery.spectral.triplets import require_finite

        b = sources[self.from_]
        require_finite(W, EDITED)
        require_finite(b, f"`{self.from_}`")
        return b

    def _with_values(self, directions: Tensor, values: Tensor, decomposer: Decomposer) -> Tensor:
        """U S V^T with the U, V of the one matrix and the S of the other."""
        from surgery.spectral.restore import compose

        S = decomposer.values(values)
        return compose(decomposer.triplets(directions, min(directions.shape)), S)
