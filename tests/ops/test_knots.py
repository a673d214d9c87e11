from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.knots import Knots
from tests.ops.test_tsv import ROLES, models
from tests.ops.whole import edited


def knots(models: tuple[str, ...] = ROLES, **keys: Any) -> Knots:
    return Knots.model_validate({"op": "knots", "base": "base", "models": models, **keys})


def reference(found: dict[str, Tensor], method: str, density: list[float], weights: list[float]) -> Tensor:
    """In float64, entry by entry, from the joint SVD."""
    base, *others = (W.double() for W in found.values())
    n, k = base.shape[1], len(others)
    U, S, Vh = torch.linalg.svd(torch.cat([W - base for W in others], 1), full_matrices=False)
    parts = []
    for i in range(k):
        C = torch.diag(S) @ Vh[:, i * n : (i + 1) * n]
        kept = max(1, int(density[i] * C.numel())) if density[i] else 0
        bound = C.abs().flatten().sort(descending=True).values[kept - 1] if kept else torch.inf
        parts.append(torch.where(C.abs() >= bound, C, 0.0))
    merged = torch.zeros_like(parts[0])
    for entry in range(merged.numel()):
        values = [(w, w * float(C.flatten()[entry])) for w, C in zip(weights, parts, strict=True)]
        total = sum(value for _, value in values)
        if method == "ties":
            agreeing = [(w, value) for w, value in values if value * total > 0]
            divisor = sum(w for w, _ in agreeing) or 1.0
            total = sum(value for _, value in agreeing) / divisor
        merged.view(-1)[entry] = total
    return base + U @ merged


@pytest.mark.parametrize("shape", [(14, 9), (9, 14), (30, 9), (12, 4)])
@pytest.mark.parametrize("method", ["ties", "linear"])
@pytest.mark.parametrize("density", [[1.0, 1.0, 1.0], [0.5, 0.2, 1.0], [0.0, 0.3, 0.7]])
def test_equals_the_formula(shape: tuple[int, int], method: str, density: list[float]):
    """For matrices with fewer rows than all columns together, and with more."""
    found = models(*shape)
    weights = [1.0, 2.0, 0.5]
    made = edited(knots(method=method, density=density, weights=weights), found["a"], found)
    expected = reference(found, method, density, weights)
    assert (made - expected).norm() < 1e-4 * (expected - found["base"]).norm()


def test_linear_is_task_arithmetic():
    """Without trimming the basis does not matter, and nothing is decomposed."""
    found = models()
    made = edited(knots(method="linear", weights=[1, 2, -0.5], alpha=0.5), found["a"], found)
    d = [found[role] - found["base"] for role in ROLES]
    assert torch.allclose(made, found["base"] + 0.5 * (d[0] + 2 * d[1] - 0.5 * d[2]), atol=1e-6)


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_one_model_is_itself(method: str):
    """A single task vector comes back; `ties` divides by its weight."""
    found = models(roles=("a",))
    made = edited(knots(("a",), method=method, weights=[2]), found["a"], found)
    factor = 1 if method == "ties" else 2
    assert torch.allclose(made, found["base"] + factor * (found["a"] - found["base"]), atol=1e-5)


def test_equal_models_are_one():
    """The mean of equal task vectors is any of them."""
    found = models(roles=("a",))
    made = edited(knots(("a", "b")), found["a"], {**found, "b": found["a"].clone()})
    assert torch.allclose(made, found["a"], atol=1e-5)


def test_opposite_and_zero_task_vectors():
    """Where the sum is 0 no sign is elected, and the base is left; so it is where nothing changed."""
    found = models(roles=("a",))
    base = torch.zeros_like(found["base"])
    assert torch.equal(edited(knots(("a", "b")), base, {"base": base, "a": found["a"], "b": -found["a"]}), base)
    assert torch.equal(edited(knots(("a", "b")), base, {"base": base, "a": base.clone(), "b": base.clone()}), base)


def test_entries_equal_to_the_smallest_that_is_kept_are_kept():
    """Of four entries of one size, half is all."""
    base = torch.zeros(2, 2)
    d = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    made = edited(knots(("a",), density=[0.25]), base, {"base": base, "a": d})
    assert torch.allclose(made, d, atol=1e-6)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_dropping_at_random(method: str):
    """Every kept coefficient is divided by the density: the mean over many seeds is the merge without dropping."""
    found = models(roles=("a",))
    d = (found["a"] - found["base"]).double()
    means = sum(
        edited(knots(("a",), method=method, density=0.5, seed=seed), found["a"], found).double() - found["base"]
        for seed in range(400)
    )
    assert (means / 400 - d).norm() < 3 * d.norm() / 20  # a standard error of |d| / sqrt(400), 0.05 |d|, each time
    once, again, other = (knots(("a",), method=method, density=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(edited(once, found["a"], found), edited(again, found["a"], found))
    assert not torch.equal(edited(once, found["a"], found), edited(other, found["a"], found))
    U = torch.linalg.svd(d, full_matrices=False).U
    C, kept = U.mT @ d, U.mT @ (edited(once, found["a"], found) - found["base"]).double()
    share = (kept / C).abs()  # 0 or 2
    assert torch.minimum(share, (share - 2).abs()).max() < 1e-2
    assert 0.4 < (share > 1).double().mean() < 0.6


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_dropping_nothing_and_everything(method: str):
    """Density 1 is the merge without dropping, density 0 the base."""
    found = models()
    same = edited(knots(method=f"dare_{method}"), found["a"], found)
    assert torch.allclose(same, edited(knots(method=method), found["a"], found), atol=1e-6)
    assert torch.equal(edited(knots(method=f"dare_{method}", density=0), found["a"], found), found["base"])


def test_experts_of_a_stack_drop_different_entries():
    """Equal matrices in one stack do not lose the same coefficients, and the pieces decide nothing."""
    found = {role: torch.stack([W, W]) for role, W in models().items()}
    first, second = edited(knots(method="dare_ties", density=0.5), found["a"], found)
    assert not torch.allclose(first, second, atol=1e-3)


def test_order_and_scale():
    """The order of the models does not matter, and alpha scales what is added."""
    found = models()
    made = edited(knots(density=0.5), found["a"], found)
    assert torch.allclose(edited(knots(("c", "a", "b"), density=0.5), found["a"], found), made, atol=1e-5)
    twice = edited(knots(density=0.5, alpha=2), found["a"], found)
    assert torch.allclose(twice - found["base"], 2 * (made - found["base"]), atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"density": 1.5}, "found `1.5`; expected a number between 0 and 1"),
        ({"density": {"a": [0.5, 2], "b": 1, "c": 1}}, "found `2.0`; expected a number between 0 and 1"),
        ({"density": [1]}, "found 1 density for 3 models"),
        ({"method": "dare"}, "'ties', 'linear', 'dare_ties' or 'dare_linear'"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_faults(keys: dict[str, Any], message: str):
    """Each is told."""
    with pytest.raises(ValidationError, match=message):
        knots(**keys)
