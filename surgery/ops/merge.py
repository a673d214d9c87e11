"""What the operations that merge several models have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from surgery.graded import NUMBER_SCHEMA, VALUE, Number, is_number, read_number, within
from surgery.ops.base import RESULT, Kind, Op, Role
from surgery.wording import quoted, show

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from surgery.ops.whole import Piece

PER_MODEL = ("weights", "density", "gamma", "epsilon")

PerModel = Annotated[
    tuple[Number, ...],
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number"},
                {"type": "array", "items": NUMBER_SCHEMA, "minItems": 1},
                {"type": "object", "additionalProperties": NUMBER_SCHEMA, "minProperties": 1},
            ]
        }
    ),
]


class MergeOp(Op):
    """An operation on the tensors of several `models`, whose result replaces the running tensor.

    The fields of `PER_MODEL` hold a value for each of `models`, in their order. A recipe gives one number for all, a
    list in the order of `models`, a map from role to value, or one rule for all, `{value: [0, 1]}`.
    """

    kind: ClassVar[Kind] = "elementwise"

    models: tuple[Role, ...] = Field(
        min_length=1, description="the roles that are merged; `result` is the running tensor"
    )

    @field_validator("models")
    @classmethod
    def _distinct(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        repeated = [name for i, name in enumerate(models) if name in models[:i]]
        if repeated:
            raise ValueError(f"`{repeated[0]}` is listed more than once; give it one weight instead")
        return models

    @field_validator(*PER_MODEL, mode="before", check_fields=False)
    @classmethod
    def _in_order_of_models(cls, value: object, info: ValidationInfo) -> object:
        models: tuple[str, ...] | None = info.data.get("models")
        if value is None:
            return None
        if models is None:  # there is nothing to compare with: what is wrong with the models is reported
            return ()
        return tuple(cls.read_value(name, each) for name, each in per_model(models, value, str(info.field_name)))

    @classmethod
    def read_value(cls, name: str, value: object) -> object:  # noqa: ARG003 - for those who override it
        """What is given for one model. Raises ValueError."""
        return read_number(value)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.models

    @property
    def uses_result(self) -> bool:
        return RESULT in self.reads

    def merged(self, piece: Piece) -> list[Tensor]:
        """The tensors of `models`, in order."""
        return [of_role(piece, role) for role in self.models]


class TaskVectorOp(MergeOp):
    """A merge of task vectors d_i = W_i - b, the differences of `models` from the model `base`."""

    base: Role = Field(description="the role of the model that the others were made from")

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.base in self.models:
            raise ValueError(f"`{self.base}` is the base and among `models`; its task vector is 0: leave it out there")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.base, *self.models)

    def task_vectors(self, piece: Piece) -> tuple[Tensor, list[Tensor]]:
        """b and the task vectors, the latter in memory of their own."""
        b = of_role(piece, self.base)
        return b, [W - b for W in self.merged(piece)]

    def vectors(self, piece: Piece) -> list[Tensor]:
        """The task vectors alone."""
        return self.task_vectors(piece)[1]


def each_within(low: float = -math.inf, high: float = math.inf) -> AfterValidator:
    """Checks that the numbers of every model lie between two bounds."""
    bounds = within(low, high)

    def check(values: tuple[Number, ...]) -> tuple[Number, ...]:
        for value in values:
            bounds.func(value)  # type: ignore[call-arg]  # it takes no ValidationInfo
        return values

    return AfterValidator(check)


def of_role(piece: Piece, role: str) -> Tensor:
    """The tensor of a role; that of `result` is the running one."""
    return piece.W if role == RESULT else piece.sources[role]


def per_model(models: Sequence[str], value: object, noun: str) -> list[tuple[str, object]]:
    """Each model with what is given for it, in the order of `models`. Raises ValueError."""
    if is_number(value) or (isinstance(value, Mapping) and VALUE in value and VALUE not in models):
        return [(name, value) for name in models]
    if isinstance(value, Mapping):
        if set(value) != set(models):
            found = quoted(value) or "no model"
            raise ValueError(f"found {noun} for {found}; expected one for each of `models`: {quoted(models)}")
        return [(name, value[name]) for name in models]
    if not isinstance(value, list | tuple):
        expected = "a number, a list in the order of `models`, or a map from role to value"
        raise ValueError(f"found {show(value)}; expected {expected}")
    if len(value) != len(models):
        raise ValueError(f"found {len(value)} {noun} for {len(models)} models; expected one a model")
    return list(zip(models, value, strict=True))
