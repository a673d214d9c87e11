from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from surgery.ops.linear import Linear
from tests.ops.whole import edited

finite = st.floats(-4, 4, allow_nan=False)


def linear(**parameters: object) -> Linear:
    return Linear.model_validate({"op": "linear", **parameters})


@given(st.lists(finite, min_size=1, max_size=4), st.booleans(), st.integers(0, 1000))
def test_result_is_the_weighted_sum(weights: list[float], normalize: bool, seed: int):
    """W' = sum w_i W_i, divided by sum w_i if normalised, to float32's accuracy; the inputs stay as they are."""
    total = sum(map(Fraction, weights))
    if normalize and abs(total) < Fraction(1, 10):
        return
    names = [f"m{i}" for i in range(len(weights))]
    generator = torch.Generator().manual_seed(seed)
    sources = {name: torch.randn(5, 7, generator=generator) for name in names}
    kept = {name: source.clone() for name, source in sources.items()}
    found = edited(linear(models=names, weights=weights, normalize=normalize), torch.zeros(5, 7), sources)
    scale = float(total) if normalize else 1.0
    expected = sum(w / scale * sources[name].double() for w, name in zip(weights, names, strict=True))
    largest = max(abs(w / scale) for w in weights)
    assert torch.allclose(found.double(), torch.as_tensor(expected), rtol=0, atol=1e-6 * (1 + 4 * largest))
    assert found.dtype == torch.float32
    assert all(torch.equal(sources[name], kept[name]) for name in names)


def test_one_model_alone_is_copied_exactly():
    """Weights 0 and 1 give the one model bit by bit, equal weights of one model too."""
    base, sft = torch.randn(3, 4), torch.randn(3, 4)
    sources = {"base": base, "sft": sft}
    for op in (linear(models=["base", "sft"], weights=[0, 1]), linear(models=["sft"])):
        assert torch.equal(edited(op, base, sources), sft)


def test_running_tensor_takes_part_under_its_reserved_name():
    """`result` among the models means W, and only then the outcome depends on it."""
    W, base = torch.full((2, 2), 4.0), torch.full((2, 2), 8.0)
    mixed = linear(models=["base", "result"], weights={"result": "rest", "base": 0.25})
    assert torch.equal(edited(mixed, W, {"base": base}), torch.full((2, 2), 5.0))
    assert mixed.uses_result
    assert not linear(models=["base", "sft"]).uses_result
    assert mixed.reads == ("base", "result")


def test_pieces_make_up_the_whole():
    """Applied to flat pieces the operation gives the same bits as on the whole tensor, in float64 too."""
    for dtype in (torch.float32, torch.float64):
        sources = {name: torch.randn(1000, dtype=dtype) for name in ("a", "b", "c")}
        op = linear(models=["a", "b", "c"], weights=[0.2, 0.5, "rest"])
        whole = edited(op, sources["a"], sources)
        assert whole.dtype == dtype
        assert torch.equal(edited(op, sources["a"], sources, elements=333), whole)


def test_map_and_list_are_the_same_operation():
    """Weights as a map, in any order, equal the list in the order of the models; dumps read back as equal."""
    listed = linear(models=["base", "sft"], weights=[0.25, 0.75])
    mapped = linear(models=["base", "sft"], weights={"sft": 0.75, "base": 0.25})
    assert listed == mapped
    assert hash(listed) == hash(mapped)
    assert linear(**{k: v for k, v in mapped.model_dump(mode="json").items() if k != "op"}) == mapped
    assert linear(models=["base", "sft"]).coefficients == (("base", 0.5), ("sft", 0.5))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"models": []}, "found 0 models; `linear` merges one or more"),
        ({"models": ["base", "base"]}, "`base` is listed more than once"),
        ({"models": ["base", "sft"], "weights": [1]}, "found 1 weights for 2 models"),
        ({"models": ["base", "sft"], "weights": {"base": 1}}, "expected one for each of `models`: `base`, `sft`"),
        ({"models": ["base"], "weights": {"base": 1, "sft": 1}}, "found weights for `base`, `sft`"),
        ({"models": ["base"], "weights": "0.5"}, "found `0.5`; expected a number, a list in the order of `models`"),
        ({"models": ["base"], "weights": [True]}, "found `true` for `base`"),
        ({"models": ["base"], "weights": [float("inf")]}, "found `inf`; expected a finite number"),
        ({"models": ["base"], "weights": [1e40]}, "found `1e\\+40`; expected at most 1e\\+12 in size"),
        ({"models": ["base"], "weights": [-(10**400)]}, "found an integer of too many digits; expected at"),
        (
            {"models": ["a", "b", "c"], "weights": [3e38, "rest", 3e38], "normalize": False},
            "found `3e\\+38`; expected at most 1e\\+12 in size",
        ),
        ({"models": ["base"], "weights": ["0.5"]}, "expected a finite number or `rest`"),
        ({"models": ["base", "sft"], "weights": ["rest", "rest"]}, "`rest` more than once"),
        ({"models": ["base", "sft"], "weights": [1, -1]}, "sum to 0"),
        ({"models": ["base", "sft"], "weights": [0, 0]}, "sum to 0"),
        ({"models": ["base", "sft"], "weights": [1, -1 + 1e-9]}, "`normalize: false`"),
    ],
)
def test_weights_that_make_no_sense_are_refused(parameters: dict[str, object], message: str):
    """Wrong numbers of weights, unknown roles, words, infinities and vanishing sums are errors."""
    with pytest.raises(ValidationError, match=message):
        linear(**parameters)


def test_vanishing_sum_is_allowed_without_normalisation():
    """Differences of models are sums with weights 1 and -1."""
    op = linear(models=["base", "sft"], weights=[-1, 1], normalize=False)
    found = edited(op, torch.zeros(2), {"base": torch.ones(2), "sft": torch.full((2,), 3.0)})
    assert torch.equal(found, torch.full((2,), 2.0))
