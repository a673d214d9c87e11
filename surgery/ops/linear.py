"""The weighted sum of models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from surgery.graded import NUMBER_SCHEMA, Graded, Number, is_number, read_number
from surgery.ops.merge import MergeOp, normalized
from surgery.wording import show

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.ops.whole import Piece

REST = "rest"  # the weight that brings the sum to 1

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

    def edit(self, piece: Piece) -> Tensor:
        from surgery.ops.combination import combination

        return combination([c for _, c in self.coefficients], self.merged(piece))

    def workspace(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 2 * len(self.models) * math.prod(shape)


def _weight(name: str, value: Any) -> float | Graded | str:
    if value == REST:
        return REST
    if not (is_number(value) or isinstance(value, Graded | Mapping | list | tuple)):
        raise ValueError(f"found {show(value)} for `{name}`; expected a finite number or `{REST}`")
    return read_number(value)


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
    coefficients = normalized(resolved, optional=True) if normalize else resolved
    return tuple(zip(models, coefficients, strict=True))
