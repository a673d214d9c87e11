"""What an operation is: parameters that pydantic validates, and one pure function on tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from surgery.graded import Graded, Numbers
from surgery.select import Select

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from surgery.ops.whole import Edit, Piece, Whole
    from surgery.spectral.decomposer import Decomposer

RESULT = "result"  # the reserved role: the running tensor, as the steps before left it

Kind = Literal["copy", "elementwise", "rows", "matrix", "heads"]


def _known_role(name: str, info: ValidationInfo) -> str:
    roles = (info.context or {}).get("roles")
    if roles is not None and name != RESULT and name not in roles:
        raise ValueError(f"`{name}` is not among the recipe's models: {', '.join(roles)}")
    return name


Role = Annotated[str, AfterValidator(_known_role)]


class Op(BaseModel):
    """One step of a recipe.

    A subclass declares its parameters as fields, its `kind` and perhaps its `natural` scope, and implements `reads` and
    `apply`; or `prepare`, where it has to see the whole tensor before it edits the first piece, or what is known of it
    beside its numbers. `kind` tells the executor how a tensor may be divided:

    - `copy`: not at all; the result is always a copy, see `copies`.
    - `elementwise`: every output element depends on the same element of the inputs, and on what was measured of the
      whole; pieces are flat.
    - `rows`: likewise of the same row, along the last dimension; pieces are 2-D, a vector is one row.
    - `matrix`: pieces are whole 2-D matrices (a 3-D stack of experts one by one); 1-D tensors are outside.
    - `heads`: pieces are whole value and output projections of an attention module, and the bias of values as one row;
      `prepare` gets to see both models' module, as read, so it is the first step of these tensors.

    A field that is a `Number` of `surgery.graded` is a `float` once `at` has resolved it for a tensor, one that is an
    `Amount` a `Quantity`.
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
    def sources(self) -> tuple[str, ...]:
        """The other roles of whose tensor it gets each piece beside that of the running tensor."""
        return () if self.kind == "heads" else tuple(role for role in self.reads if role != RESULT)

    @property
    def uses_result(self) -> bool:
        """Whether the outcome depends on the running tensor."""
        return True

    @property
    def copies(self) -> bool:
        """Whether the result is the tensor of the one role in `reads`, byte for byte, so that nothing is called."""
        return self.kind == "copy"

    @property
    def passes(self) -> int:
        """How often the tensors are read, to measure them and to edit them."""
        return 1

    def at(self, numbers: Numbers) -> Self:
        """The operation for one tensor, with its number for everything that differs from tensor to tensor.

        Raises ValueError where those numbers do not go together.
        """
        resolved = {name: _resolved(value, numbers) for name, value in self if _graded(value)}
        if not resolved:
            return self
        made = type(self).model_construct(self.model_fields_set, **{**dict(self), **resolved})
        made.check()
        return made

    def check(self) -> None:
        """Raises ValueError where the numbers for one tensor do not go together."""

    @property
    def graded(self) -> tuple[Graded, ...]:
        """All that differs from tensor to tensor."""
        return tuple(each for _, value in self for each in _graded(value))

    def prepare(self, whole: Whole) -> Edit:  # noqa: ARG002 - for those who measure it
        """What makes a piece of the result from a piece of the tensor: `edit`, unless the whole is measured before."""
        return self.edit

    def edit(self, piece: Piece) -> Tensor:
        """A piece of the result. Pure, as `apply` is. Raises NumericalError."""
        return self.apply(piece.W, piece.sources, piece.decomposer)

    def apply(self, W: Tensor, sources: Mapping[str, Tensor], decomposer: Decomposer) -> Tensor:
        """The new tensor. Pure: same dtype (float32 or float64), shape and device as W; inputs stay as they are.

        `sources` maps each role of the property `sources` to its tensor, of W's dtype, shape and device.
        Singular value decompositions come from `decomposer`. Raises NumericalError.
        """
        raise NotImplementedError

    def decomposes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:  # noqa: ARG002 - for those who override it
        """What `apply` asks the decomposer for: of the matrix of which role (`RESULT`: W) how many leading and trailing
        triplets; (0, 0) for the singular values alone.
        """
        return {}

    def kept(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 - for those who override it
        """Bytes that what `prepare` returns keeps of a whole tensor of this shape."""
        return 0

    def workspace(self, shape: tuple[int, ...]) -> int:
        """Upper bound in bytes of what `apply` allocates for float32 pieces of this shape, its result included."""
        raise NotImplementedError

    def flops(self, shape: tuple[int, ...]) -> int:
        """Floating-point operations for one piece of this shape, to first order."""
        raise NotImplementedError

    def remark(self, shape: tuple[int, int]) -> str | None:  # noqa: ARG002 - for those who override it
        """What a user should know about matrices of this shape (say, that they are restored whole), or None."""
        return None


def _graded(value: object) -> tuple[Graded, ...]:
    if isinstance(value, Graded):
        return (value,)
    return tuple(each for each in value if isinstance(each, Graded)) if isinstance(value, tuple) else ()


def _resolved(value: object, numbers: Numbers) -> object:
    if isinstance(value, tuple):
        return tuple(_resolved(each, numbers) for each in value)
    return numbers[value] if isinstance(value, Graded) else value
