"""What the operations that merge several models have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, get_args

from annotated_types import MinLen
from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from surgery.graded import NUMBER_SCHEMA, VALUE, Number, is_number, read_number, within
from surgery.ops.base import RESULT, Kind, Op, Role
from surgery.wording import numbered, quoted, show

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from surgery.ops.combination import Coefficient
    from surgery.ops.whole import Piece

PER_MODEL = ("weights", "density", "gamma", "epsilon")
VANISHING_SUM = 1e-6  # relative to sum |w|: dividing by less than this amplifies rounding errors of bf16 by 10^4

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
    list in the order of `models`, a map from role to value, or rules for all, `{value: [0, 1]}` or
    `[{tensors: mlp, value: 0.5}, {value: 1}]`.
    """

    kind: ClassVar[Kind] = "elementwise"

    models: tuple[Role, ...] = Field(
        min_length=1, description="the roles that are merged; `result` is the running tensor"
    )

    @field_validator("models", mode="before")
    @classmethod
    def _as_many_as_it_merges(cls, models: object) -> object:
        if not isinstance(models, list | tuple):
            return models
        if fault := wrong_number(cls, len(models)):
            raise ValueError(fault)
        return tuple(models)  # as the strict validation of a recipe expects of what no longer is JSON

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

    @model_validator(mode="after")
    def _numbers_go_together(self) -> Self:
        if not self.graded:  # else `at` checks them tensor by tensor
            self.check()
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return self.models

    @property
    def uses_result(self) -> bool:
        return RESULT in self.reads

    def merged(self, piece: Piece) -> list[Tensor]:
        """The tensors of `models`, in order."""
        return [of_role(piece, role) for role in self.models]


class VectorOp(MergeOp):
    """A merge of the tensors W_i of `models` as vectors: W_i themselves, or with `base` their differences W_i - b."""

    base: Role | None = Field(
        default=None,
        description="the role from which differences are taken; default: the tensors are merged as such",
    )

    @model_validator(mode="after")
    def _base_is_another(self) -> Self:
        if self.base in self.models:
            raise ValueError(f"`{self.base}` is the base and among `models`; its task vector is 0: leave it out there")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return self.models if self.base is None else (self.base, *self.models)

    def vectors(self, piece: Piece) -> list[Tensor]:
        """What is merged, in the order of `models`: with a base, in memory of its own."""
        if self.base is None:
            return self.merged(piece)
        b = of_role(piece, self.base)
        return [W - b for W in self.merged(piece)]

    def combined(self, piece: Piece, coefficients: Sequence[Coefficient]) -> Tensor:
        """sum_i c_i W_i, or with a base b + sum_i c_i (W_i - b), in new memory."""
        from surgery.ops.combination import combination, displaced

        if self.base is None:
            return combination(coefficients, self.merged(piece))
        return displaced(of_role(piece, self.base), coefficients, self.merged(piece))


class TaskVectorOp(VectorOp):
    """A merge of task vectors d_i = W_i - b, the differences of `models` from the model `base`."""

    base: Role = Field(description="the role of the model that the others were made from")

    def task_vectors(self, piece: Piece) -> tuple[Tensor, list[Tensor]]:
        """b and the task vectors, the latter in memory of their own."""
        return of_role(piece, self.base), self.vectors(piece)


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


def divisor(weights: Sequence[float], *, optional: bool = False) -> float:
    """sum_i w_i, by which the weights are to be divided: always, or `optional`, as the field `normalize` says.

    Raises ValueError where they cancel, that is where the sum is about 0 beside that of their sizes.
    """
    total = math.fsum(weights)
    if abs(total) <= VANISHING_SUM * math.fsum(map(abs, weights)):
        remedy = "change them, or set `normalize: false`" if optional else "change them"
        raise ValueError(f"the weights {list(weights)} sum to {total:g}, and would be divided by that; {remedy}")
    return total


def normalized(weights: Sequence[float], *, optional: bool = False) -> list[float]:
    """w_i / sum_j w_j. Raises ValueError where they cancel (see `divisor`)."""
    total = divisor(weights, optional=optional)
    return [w / total for w in weights]


def wrong_number(op: type[MergeOp], found: int) -> str | None:
    """What is wrong with so many models, if anything: the type of the field tells how many there may be."""
    field = op.model_fields["models"]
    items = get_args(field.annotation)
    fixed = len(items) if items[-1] is not Ellipsis else None
    least = fixed or next((limit.min_length for limit in field.metadata if isinstance(limit, MinLen)), 0)
    if found == fixed or (fixed is None and found >= least):
        return None
    expected = {1: "one", 2: "two"}.get(least, str(least)) + ("" if fixed else " or more")
    based = "base" in op.model_fields and op.model_fields["base"].is_required()
    beside = ", beside `base`" if based else ""
    rest = "; a step after it can merge `result` with another" if found > least and (based or least > 1) else ""
    name = get_args(op.model_fields["op"].annotation)[0]
    return f"found {numbered(found, 'model')}; `{name}` merges {expected}{beside}{rest}"


def _are_rules(value: object) -> bool:
    """Whether a list is one of rules for all models: all have a value, and some select tensors."""
    if not isinstance(value, list | tuple) or not all(isinstance(rule, Mapping) and VALUE in rule for rule in value):
        return False
    return any(set(rule) - {VALUE} for rule in value)


def per_model(models: Sequence[str], value: object, noun: str) -> list[tuple[str, object]]:
    """Each model with what is given for it, in the order of `models`. Raises ValueError."""
    if is_number(value) or (isinstance(value, Mapping) and VALUE in value and VALUE not in models):
        return [(name, value) for name in models]
    if _are_rules(value):
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
