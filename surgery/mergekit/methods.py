"""The merge methods of mergekit, and the operation and the fields of ours that each of their parameters becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["number", "constant", "count", "flag"]
Scope = Literal["shared", "inputs", "others"]  # one for all models; one for each; one for each but the base
Base = Literal["none", "optional", "needed", "first"]
Default = float | bool | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a method: its name in mergekit, the field of our operation, and what it is if it is not given.

    A `number` may differ from tensor to tensor; a `constant`, a `count` (a whole number) and a `flag` may not. With
    `needed`, mergekit refuses a file that does not give it; then there is no default.
    """

    name: str
    field: str
    kind: Kind = "number"
    scope: Scope = "shared"
    default: Default = None
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method; its operation has the same name.

    base: `none`, the base is a model like the others; `optional`, `needed`, it is what task vectors are taken from;
    `first`, it is the first of the two models that are merged. least, most: how many models, the base not counted
    (with `none` it counts); with 0, the base alone is the result. without_effect: parameters that mergekit accepts and
    that change nothing here, and why. respell: makes of the step's fields those of the operation.
    """

    base: Base
    parameters: tuple[Parameter, ...] = ()
    least: int = 1
    most: int | None = None
    without_effect: tuple[tuple[str, str], ...] = ()
    random: bool = False
    respell: Callable[[dict[str, Any]], dict[str, Any]] = dict  # fields of which several become one

    def parameter(self, name: str) -> Parameter | None:
        """The parameter that mergekit calls so."""
        return next((each for each in self.parameters if each.name == name), None)


_INT8_MASK = ("int8_mask", "masks are made piece by piece and need no smaller dtype")
_NOTHING_DROPPED = "`task_arithmetic` drops nothing of the task vectors"


def _task_vectors(*more: Parameter, normalize: bool = False, rescale: bool = False, random: bool = False) -> Method:
    parameters = (
        Parameter("weight", "weights", scope="others", needed=True),
        Parameter("density", "density", scope="others", default=1.0),
        *more,
        Parameter("normalize", "normalize", "flag", default=normalize),
        Parameter("rescale", "rescale", "flag", default=rescale),
        Parameter("lambda", "lambda", default=1.0),
    )
    return Method("needed", parameters, least=0, without_effect=(_INT8_MASK,), random=random)


def _angles(fields: dict[str, Any]) -> dict[str, Any]:
    """nuslerp's two switches as one field: flatten counts for more than row_wise, which means columns."""
    flatten, row_wise = fields.pop("flatten", True), fields.pop("row_wise", False)
    return fields if flatten else {**fields, "angles": "columns" if row_wise else "rows"}


_GAMMA = Parameter("gamma", "gamma", scope="others", default=0.01)
_EPSILON = Parameter("epsilon", "epsilon", scope="others", default=0.15)
_THRESHOLD = Parameter("epsilon", "epsilon", default=1e-5)

METHODS: dict[str, Method] = {
    "linear": Method(
        "none",
        (
            Parameter("weight", "weights", scope="inputs", needed=True),
            Parameter("normalize", "normalize", "flag", default=True),
        ),
    ),
    "slerp": Method("first", (Parameter("t", "t", needed=True),), most=1),
    "nuslerp": Method(
        "optional",
        (
            Parameter("weight", "weights", scope="others", needed=True),
            Parameter("nuslerp_row_wise", "row_wise", "flag", default=False),
            Parameter("nuslerp_flatten", "flatten", "flag", default=True),
        ),
        least=2,
        most=2,
        respell=_angles,
    ),
    "multislerp": Method(
        "optional",
        (
            Parameter("weight", "weights", scope="others", needed=True),
            Parameter("normalize_weights", "normalize", "flag", default=True),
        ),
        least=2,
        without_effect=(("eps", "divisions by 0 are avoided in another way"),),
    ),
    "karcher": Method(
        "none",
        (
            Parameter("max_iter", "max_iter", "count", default=10),
            Parameter("tol", "tol", "constant", default=1e-5),
        ),
        least=2,
    ),
    "task_arithmetic": Method(
        "needed",
        (
            Parameter("weight", "weights", scope="others", needed=True),
            Parameter("normalize", "normalize", "flag", default=False),
            Parameter("lambda", "lambda", default=1.0),
        ),
        least=0,
        without_effect=(_INT8_MASK, ("density", _NOTHING_DROPPED), ("rescale", _NOTHING_DROPPED)),
    ),
    "ties": _task_vectors(normalize=True),
    "dare_linear": _task_vectors(rescale=True, random=True),
    "dare_ties": _task_vectors(rescale=True, random=True),
    "breadcrumbs": _task_vectors(_GAMMA),
    "breadcrumbs_ties": _task_vectors(_GAMMA),
    "della": _task_vectors(_EPSILON, normalize=True, rescale=True, random=True),
    "della_linear": _task_vectors(_EPSILON, rescale=True, random=True),
    "sce": Method(
        "needed", (Parameter("select_topk", "select_topk", default=1.0),), least=0, without_effect=(_INT8_MASK,)
    ),
    "ram": Method("needed", (_THRESHOLD,), least=0),
    "ramplus_tl": Method(
        "needed", (Parameter("r", "r", default=0.1), Parameter("alpha", "alpha", default=0.2), _THRESHOLD), least=0
    ),
    "model_stock": Method("needed", (Parameter("filter_wise", "filter_wise", "flag", default=False),), least=2),
    "nearswap": Method("needed", (Parameter("t", "t", needed=True),), most=1),
    "arcee_fusion": Method("needed", most=1),
    "passthrough": Method("none", (Parameter("scale", "scale", scope="inputs", default=1.0),), most=1),
}

KNOWN = {each.name for method in METHODS.values() for each in method.parameters} | {
    name for method in METHODS.values() for name, _ in method.without_effect
}
