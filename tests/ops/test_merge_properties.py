"""What every merge does or does not do: each property with the operations that lack it, and why.

All merges of `OPS` are tested; one that is added is, too, and needs at most its required parameters here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops import OPS
from surgery.ops.base import Op
from surgery.ops.merge import MergeOp, wrong_number
from tests.ops.whole import edited

ROLES = ("a", "b", "c")
MERGES = [name for name, op in OPS.items() if issubclass(op, MergeOp)]
BASED = [name for name in MERGES if "base" in OPS[name].model_fields and OPS[name].model_fields["base"].is_required()]
WEIGHTED = [name for name in MERGES if "weights" in OPS[name].model_fields]

REQUIRED: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.05},
    "lines": {"alpha": 0.4, "beta": 0.6, "depth": 1},
}
INTERESTING: dict[str, dict[str, Any]] = {  # so that it does what it is for
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.1},
    "della": {"density": 0.5, "epsilon": 0.2},
    "della_linear": {"density": 0.5, "epsilon": 0.2},
    "sce": {"select_topk": 0.5},
    "ram": {"epsilon": 0.05},
    "ramplus_tl": {"epsilon": 0.05},
    "knots": {"density": 0.5},
    "nuslerp": {"angles": "rows"},
    "model_stock": {"filter_wise": True},
    "passthrough": {"scale": 0.7},
}
NUMBERS = {
    **dict.fromkeys(("slerp", "nuslerp"), (2, 2)),
    **dict.fromkeys(("multislerp", "karcher", "model_stock"), (2, 99)),
    **dict.fromkeys(("passthrough", "wise_ft", "nearswap", "arcee_fusion"), (1, 1)),
}
WEIGHTS = {"a": 0.8, "b": 0.5, "c": 1.1}

GENERATOR = torch.Generator().manual_seed(41)
BASE = torch.randn(15, 12, generator=GENERATOR, dtype=torch.float64)
SOURCES = {
    "base": BASE,
    **{role: BASE + 0.1 * torch.randn(15, 12, generator=GENERATOR, dtype=torch.float64) for role in ROLES},
}


def merge(name: str, models: tuple[str, ...] = ROLES, **parameters: Any) -> Op:
    """With its required parameters and as many of the models as it takes, three at the most."""
    step = {"op": name, **REQUIRED.get(name, {}), **parameters}
    if name in BASED:
        step["base"] = "base"
    count = next(k for k in range(len(models), 0, -1) if wrong_number(OPS[name], k) is None)
    return OPS[name].model_validate({**step, "models": models[:count]})


def interesting(name: str, models: tuple[str, ...] = ROLES) -> Op:
    """With different weights, and some entries left out."""
    parameters = dict(INTERESTING.get(name, {}))
    count = len(merge(name, models).models)
    if name in WEIGHTED:
        parameters["weights"] = {role: WEIGHTS[role] for role in models[:count]}
    return merge(name, models, **parameters)


def result(op: Op, sources: dict[str, Tensor] = SOURCES, **pieces: int) -> Tensor:
    """Of the roles that it reads alone."""
    return edited(op, sources["base"], {role: sources[role] for role in op.reads}, **pieces)


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-9)


def summed(b: Tensor, W: Tensor, k: int) -> Tensor:
    return b + k * (W - b)


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("count", range(5))
def test_the_number_of_models(name: str, count: int) -> None:
    """Is right, or one message says how many there are and how many are merged."""
    step = {"op": name, **REQUIRED.get(name, {}), "models": [f"m{i}" for i in range(count)]}
    if name in BASED:
        step["base"] = "base"
    if name == "consensus":
        step["k"] = 1
    least, most = NUMBERS.get(name, (1, 99))
    if least <= count <= most:
        assert len(OPS[name].model_validate(step).models) == count
        return
    with pytest.raises(ValidationError) as caught:
        OPS[name].model_validate(step)
    (fault,) = caught.value.errors()
    expected = ("one", "two")[least - 1] + ("" if least == most else " or more")
    assert re.match(rf"Value error, found {count} models?; `{name}` merges {expected}($|[,;])", fault["msg"])


SAME = "the result is that model"
EQUAL: dict[str, Callable[[Tensor, Tensor, int], Tensor] | str] = {
    # Sums, not averages: equal task vectors add up.
    **dict.fromkeys(
        ("task_arithmetic", "lines", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della_linear"),
        summed,
    ),
    "wise_ft": lambda b, W, _: (b + W) / 2,
    "nearswap": lambda b, W, _: b + (W - b).clamp(-0.05, 0.05),
    "consensus": lambda b, *_: b,  # beside the sum of two others like it no change is large
    "arcee_fusion": "entries of the one model and of the base",
    "tsv": "the leading third of the triplets",
    "iso_c": "another spectrum",
    "iso_cts": "another spectrum",
}


@pytest.mark.parametrize("name", MERGES)
def test_equal_models(name: str) -> None:
    """Give that model, whatever the base, except where sums or entries are what is wanted."""
    op = merge(name)
    W = SOURCES["a"]
    found = result(op, {"base": BASE, **dict.fromkeys(ROLES, W)})
    expected = EQUAL.get(name, SAME)
    if callable(expected):
        assert close(found, expected(BASE, W, len(op.models)))
    else:
        assert close(found, W) == (expected == SAME)


@pytest.mark.parametrize("name", BASED)
def test_models_equal_to_the_base(name: str) -> None:
    """Give the base, bit by bit: what does not differ is left as it is."""
    assert torch.equal(result(interesting(name), dict.fromkeys(("base", *ROLES), BASE)), BASE)


@pytest.mark.parametrize("name", MERGES)
def test_pieces(name: str) -> None:
    """Do not matter: entries or rows a few at a time, or the matrices of a stack one by one."""
    op = interesting(name)
    if op.kind == "matrix":
        stacked = {role: torch.stack([W, 2 * W.flip(0), W.flip(1)]) for role, W in SOURCES.items()}
        for i, found in enumerate(result(op, stacked)):
            assert close(found, result(op, {role: W[i] for role, W in stacked.items()}))
    else:
        for size in (1, 7):
            assert close(result(op, elements=size, rows=size), result(op))


ORDERED = {"slerp": "t leads from the first to the second: t is 1 - t in the other order"}


@pytest.mark.parametrize("name", [name for name in MERGES if len(merge(name).models) > 1])
def test_the_order_of_the_models(name: str) -> None:
    """Does not matter, weights going along with their roles; what is random depends on the role, not on the place."""
    count = len(merge(name).models)
    found = result(interesting(name, ROLES[:count][::-1]))
    assert close(found, result(interesting(name, ROLES[:count]))) == (name not in ORDERED)
    if name in ORDERED:
        assert close(result(merge(name, ("b", "a"), t=0.7)), result(merge(name, ("a", "b"), t=0.3)))


FACTORS = {
    name: key
    for name in BASED
    for key in ("lambda", "alpha")
    if key in {field.alias or found for found, field in OPS[name].model_fields.items()}
}
NO_FACTOR = {"ramplus_tl": "its alpha bounds an overlap"}
POSITIVE = {"wise_ft": "it stays between the base and the model"}


@pytest.mark.parametrize("name", [name for name in FACTORS if name not in NO_FACTOR])
def test_the_factor_of_what_is_added(name: str) -> None:
    """`lambda` or `alpha` scales the difference from the base, 0 gives the base, and a negative one takes away."""
    step = {**INTERESTING.get(name, {}), **({"beta": 0} if name == "lines" else {})}
    at_1 = result(merge(name, **{**step, FACTORS[name]: 1})) - BASE
    assert at_1.norm() > 0.01
    for factor in (0, 0.5) if name in POSITIVE else (0, 0.5, -1):
        assert close(result(merge(name, **{**step, FACTORS[name]: factor})), BASE + factor * at_1)


ABSOLUTE = {
    "nearswap": "t is a step in the units of the weights",
    "ram": "epsilon is one, too",
    "ramplus_tl": "epsilon is one, too",
    "arcee_fusion": "the softmax of a row depends on its size",
}


@pytest.mark.parametrize("name", MERGES)
def test_scale(name: str) -> None:
    """Models, base with them, that are three times as large give a result three times as large."""
    larger = {role: 3 * W for role, W in SOURCES.items()}
    found = result(interesting(name), larger)
    assert close(found, 3 * result(interesting(name))) == (name not in ABSOLUTE)


@pytest.mark.parametrize("name", BASED)
def test_shift(name: str) -> None:
    """Only differences from the base count: what is added to all models is added to the result.

    So it is in `arcee_fusion` where it is one number a row, as a softmax does not see that.
    """
    shift = torch.linspace(-2, 2, 15, dtype=torch.float64).unsqueeze(1).expand(15, 12)
    if name != "arcee_fusion":
        shift = shift + torch.linspace(0, 3, 12, dtype=torch.float64)
    shifted = {role: W + shift for role, W in SOURCES.items()}
    assert close(result(interesting(name), shifted), result(interesting(name)) + shift)


NOT_CHOSEN = {
    "tsv": "the others leave it a third of its triplets",
    "iso_c": "its spectrum is flattened",
    "iso_cts": "its spectrum is flattened",
}


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("chosen", [0, 1])
def test_a_single_weight(name: str, chosen: int) -> None:
    """Of 1, the others being 0, gives that model: end points of averages, and a sum of one task vector."""
    op = merge(name)
    weights = [float(i == chosen) for i in range(len(op.models))]
    found = result(merge(name, weights=weights))
    assert close(found, SOURCES[op.models[chosen]]) == (name not in NOT_CHOSEN)


def test_the_exceptions_are_merges() -> None:
    """No operation is excused that does not exist."""
    for exceptions in (EQUAL, ORDERED, NO_FACTOR, POSITIVE, ABSOLUTE, NOT_CHOSEN, REQUIRED, INTERESTING, NUMBERS):
        assert set(exceptions) <= set(MERGES)
