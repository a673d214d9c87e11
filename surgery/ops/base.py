"""What an operation is: parameters that pydantic validates, and one pure function on tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from surgery.select import Select

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer

RESULT = "result"  # the reserved role: the running tensor, as the steps before left it

Kind = Literal["copy", "elementwise", "matrix"]


def _known_role(name: str, info: ValidationInfo) -> str:
    roles = (info.context or {}).get("roles")
    if roles is not None and name != RESULT and name not in roles:
        raise ValueError(f"`{name}` is not among the recipe's models: {', '.join(roles)}")
    return name


Role = Annotated[str, AfterValidator(_known_role)]


class Op(BaseModel):
    """One step of a recipe.

    A subclass declares its parameters as fields, its `kind` and perhaps its `natural` scope, and implements
    `reads` and `apply`. `kind` tells the executor how a tensor may be divided:

    - `copy`: the result is the tensor of the one role in `reads`, byte for byte; `apply` is never called.
    - `elementwise`: every output element depends on the same element of the inputs; `apply` gets flat pieces.
    - `matrix`: `apply` gets whole 2-D matrices (a 3-D stack of experts one by one); 1-D tensors are outside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    kind: ClassVar[Kind]
    natural: ClassVar[Select] = Select()  # what it acts on where the recipe does not say: everything

    op: str
    select: Select | None = Field(default=None, description="what the step acts on; default: what suits the operation")

    @property
    def reads(self) -> tuple[str, ...]:
        """The roles whose tensors `apply` needs, in a fixed order; may contain `RESULT`."""
        raise NotImplementedError

    @property
    def uses_result(self) -> bool:
        """Whether the outcome depends on the running tensor."""
        return True

    def apply(self, W: Tensor, sources: Mapping[str, Tensor], decomposer: Decomposer) -> Tensor:
        """The new tensor. Pure: same dtype (float32 or float64), shape and device as W; inputs stay as they are.

        `sources` maps each role of `reads` (without `RESULT`) to its tensor, of W's dtype, shape and device.
        Singular value decompositions come from `decomposer`. Raises NumericalError.
        """
        raise NotImplementedError

    def decomposes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:  # noqa: ARG002 - for those who override it
        """What `apply` asks the decomposer for: of the matrix of which role (`RESULT`: W) how many leading and trailing
        triplets; (0, 0) for the singular values alone.
        """
        return {}

    def workspace(self, shape: tuple[int, ...]) -> int:
        """Upper bound in bytes of what `apply` allocates for float32 pieces of this shape, its result included."""
        raise NotImplementedError

    def flops(self, shape: tuple[int, ...]) -> int:
        """Floating-point operations for one piece of this shape, to first order."""
        raise NotImplementedError

    def remark(self, shape: tuple[int, int]) -> str | None:  # noqa: ARG002 - for those who override it
        """What a user should know about matrices of this shape (say, that they are restored whole), or None."""
        return None
