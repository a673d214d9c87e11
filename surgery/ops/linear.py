"""The weighted sum of models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from surgery.ops.base import RESULT, Kind, Op, Role
from surgery.wording import show

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer

REST = "rest"  # the weight that brings the sum to 1
VANISHING_SUM = 1e-6  # relative to sum |w|: dividing by less than this amplifies rounding errors of bf16 by 10^4

LARGEST = float.fromhex("0x1.fffffep127")  # of float32, in which the sum is computed

Weight = float | Literal["rest"]

_WEIGHT_SCHEMA = {"anyOf": [{"type": "number"}, {"const": REST}]}
_WEIGHTS_SCHEMA = {
    "anyOf": [
        {"type": "array", "items": _WEIGHT_SCHEMA, "minItems": 1},
        {"type": "object", "additionalProperties": _WEIGHT_SCHEMA, "minProperties": 1},
        {"type": "null"},
    ],
    "description": "one weight a model, in the order of `models` or as a map from role to weight; equal if omitted",
}


class Linear(Op):
    """W' = sum_i c_i W_i over `models`, with c_i = w_i / sum_j w_j (`normalize: true`, the default) or c_i = w_i.

    `weights` is a list in the order of `models` or a map from role to weight, and kept as the list. One weight
    may be `rest`: 1 minus the sum of the others. Without `weights` all are equal.
    """

    kind: ClassVar[Kind] = "elementwise"

    op: Literal["linear"]
    models: tuple[Role, ...] = Field(
        min_length=1, description="the roles that are summed; `result` is the running tensor"
    )
    weights: Annotated[tuple[Weight, ...] | None, WithJsonSchema(_WEIGHTS_SCHEMA)] = None
    normalize: bool = Field(default=True, description="divide by the sum of the weights")

    @field_validator("models")
    @classmethod
    def _distinct(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        repeated = [name for i, name in enumerate(models) if name in models[:i]]
        if repeated:
            raise ValueError(f"`{repeated[0]}` is listed more than once; give it one weight instead")
        return models

    @field_validator("weights", mode="before")
    @classmethod
    def _in_order_of_models(cls, value: object, info: ValidationInfo) -> tuple[Weight, ...] | None:
        models: tuple[str, ...] | None = info.data.get("models")
        if value is None or models is None:  # without models there is nothing to compare with: their fault is reported
            return None
        return tuple(_weight(name, weight) for name, weight in _pairs(models, value))

    @model_validator(mode="after")
    def _sum(self) -> Linear:
        _coefficients(self.models, self.weights, self.normalize)
        return self

    @cached_property
    def coefficients(self) -> tuple[tuple[str, float], ...]:
        """The factors c_i with their roles, in the order of `models`."""
        return _coefficients(self.models, self.weights, self.normalize)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.models

    @property
    def uses_result(self) -> bool:
        return RESULT in self.models

    def apply(
        self,
        W: Tensor,
        sources: Mapping[str, Tensor],
        decomposer: Decomposer,  # noqa: ARG002 - of Op
    ) -> Tensor:
        """The sum, accumulated in W's dtype in the order of `models`: one pass a model."""
        (name, c), *others = self.coefficients
        total = (W if name == RESULT else sources[name]) * c
        for name, c in others:
            total.add_(W if name == RESULT else sources[name], alpha=c)
        return total

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 2 * len(self.models) * math.prod(shape)


def _pairs(models: tuple[str, ...], value: object) -> list[tuple[str, object]]:
    """Each model with what is given for it, in the order of `models`."""
    if isinstance(value, Mapping):
        missing = [name for name in models if name not in value]
        unknown = [name for name in value if name not in models]
        if missing or unknown:
            found, expected = (", ".join(f"`{name}`" for name in names) for names in (value, models))
            raise ValueError(f"found weights for {found or 'no model'}; expected one for each of `models`: {expected}")
        return [(name, value[name]) for name in models]
    if not isinstance(value, list | tuple):
        raise ValueError(f"found `{value}`; expected a list in the order of `models`, or a map from role to weight")
    if len(value) != len(models):
        raise ValueError(f"found {len(value)} weights for {len(models)} models; expected one weight a model")
    return list(zip(models, value, strict=True))


def _weight(name: str, value: Any) -> Weight:
    if value == REST:
        return "rest"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"found `{value}` for `{name}`; expected a finite number or `{REST}`")
    if abs(value) > LARGEST:
        raise ValueError(f"found {show(value)} for `{name}`; expected at most {LARGEST:.3g} in size, as float32 holds")
    return float(value)


def _coefficients(
    models: tuple[str, ...], weights: tuple[Weight, ...] | None, normalize: bool
) -> tuple[tuple[str, float], ...]:
    """The factors of the sum; ValueError when `rest` is not unique, or when the weights sum to about 0."""
    given: tuple[Weight, ...] = weights if weights is not None else (1.0,) * len(models)
    numbers = [w for w in given if w != "rest"]
    if len(given) - len(numbers) > 1:
        raise ValueError(f"`weights` has `{REST}` more than once; only one weight can be what the others leave")
    rest = 1.0 - math.fsum(numbers)
    resolved = [rest if w == "rest" else w for w in given]
    scale = math.fsum(resolved) if normalize else 1.0
    if normalize and abs(scale) <= VANISHING_SUM * math.fsum(abs(w) for w in resolved):
        raise ValueError(
            f"the weights {resolved} sum to {scale:g}, and `normalize` would divide by that; "
            "change them, or set `normalize: false`"
        )
    found = tuple((name, w / scale) for name, w in zip(models, resolved, strict=True))
    for name, c in found:
        if abs(c) > LARGEST:
            raise ValueError(f"the weight of `{name}` comes to {c:.3g}; float32 holds up to {LARGEST:.3g}: change them")
    return found
