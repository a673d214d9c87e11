"""The weighted sum of models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from surgery.graded import NUMBER_SCHEMA, Graded, Number, is_number, read_number
from surgery.ops.base import RESULT
from surgery.ops.merge import MergeOp, normalized
from surgery.wording import show

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer

REST = "rest"  # the weight that brings the sum to 1

LARGEST = float.fromhex("0x1.fffffep127")  # of float32, in which the sum is computed

Weight = Number | Literal["rest"]

_WEIGHT_SCHEMA = {"anyOf": [*NUMBER_SCHEMA["anyOf"], {"const": REST}]}
_WEIGHTS_SCHEMA = {
    "anyOf": [
        {"type": "array", "items": _WEIGHT_SCHEMA, "minItems": 1},
        {"type": "object", "additionalProperties": _WEIGHT_SCHEMA, "minProperties": 1},
        {"type": "null"},
    ],
    "description": "one weight a model, in the order of `models` or as a map from role to weight; equal if omitted",
}


class Linear(MergeOp):
    """W' = sum_i c_i W_i over `models`, with c_i = w_i / sum_j w_j (`normalize: true`, the default) or c_i = w_i.

    `weights` is a list in the order of `models` or a map from role to weight, and kept as the list. One weight
    may be `rest`: 1 minus the sum of the others. Without `weights` all are equal. Source, for models of one base:
    Wortsman et al. 2022, Model soups, arXiv 2203.05482.
    """

    op: Literal["linear"]
    weights: Annotated[tuple[Weight, ...] | None, WithJsonSchema(_WEIGHTS_SCHEMA)] = None
    normalize: bool = Field(default=True, description="divide by the sum of the weights")

    @classmethod
    def read_value(cls, name: str, value: object) -> object:
        return _weight(name, value)

    def check(self) -> None:
        _coefficients(self.models, self.weights, self.normalize)

    @cached_property
    def coefficients(self) -> tuple[tuple[str, float], ...]:
        """The factors c_i with their roles, in the order of `models`."""
        return _coefficients(self.models, self.weights, self.normalize)

    def apply(
        self,
        W: Tensor,
        sources: Mapping[str, Tensor],
        decomposer: Decomposer,  # noqa: ARG002 - of Op
    ) -> Tensor:
        """The sum, accumulated in W's dtype in the order of `models`: one pass a model."""
        from surgery.ops.combination import combination

        tensors = [W if name == RESULT else sources[name] for name, _ in self.coefficients]
        return combination([c for _, c in self.coefficients], tensors)

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 2 * len(self.models) * math.prod(shape)


def _weight(name: str, value: Any) -> float | Graded | str:
    if value == REST:
        return REST
    if is_number(value):
        weight: float | Graded = _sized(name, value)
    elif isinstance(value, Graded | Mapping | list | tuple):
        weight = read_number(value)
        for number in weight.values if isinstance(weight, Graded) else ():
            _sized(name, number)
    else:
        raise ValueError(f"found {show(value)} for `{name}`; expected a finite number or `{REST}`")
    return weight


def _sized(name: str, value: float) -> float:
    if isinstance(value, float) and not math.isfinite(value):
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
    found = tuple(zip(models, normalized(resolved, optional=True) if normalize else resolved, strict=True))
    for name, c in found:
        if abs(c) > LARGEST:
            raise ValueError(f"the weight of `{name}` comes to {c:.3g}; float32 holds up to {LARGEST:.3g}: change them")
    return found
