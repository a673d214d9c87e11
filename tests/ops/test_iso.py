from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from surgery.ops import Step
from tests.ops.test_tsv import ROLES, models
from tests.ops.whole import edited
from tests.strategies import normal, with_values

STEP: TypeAdapter[Any] = TypeAdapter(Step)


def iso(op: str, models: tuple[str, ...] = ROLES, **keys: Any) -> Any:
    return STEP.validate_python({"op": op, "base": "base", "models": models, **keys})


def flattened(base: Tensor, total: Tensor, alpha: float) -> Tensor:
    U, S, Vh = torch.linalg.svd(total, full_matrices=False)
    return base + alpha * S.mean() * U @ Vh


def with_tasks(base: Tensor, tasks: list[Tensor], c: int, alpha: float) -> Tensor:
    """Iso-CTS as the paper's algorithm has it, c directions being common."""
    t = (min(base.shape) - c) // len(tasks)
    U, S, Vh = (X[..., :c] if i < 2 else X[:c] for i, X in enumerate(torch.linalg.svd(sum(tasks), full_matrices=False)))
    left, values, right = [U], [S], [Vh]
    for d in tasks:
        P, own, Qh = torch.linalg.svd(d - U @ U.mT @ d, full_matrices=False)
        left.append(P[:, :t])
        values.append(own[:t])
        right.append(Qh[:t])
    P, _, Qh = torch.linalg.svd(torch.cat(left, 1), full_matrices=False)
    R, _, Th = torch.linalg.svd(torch.cat(right), full_matrices=False)
    return base + alpha * torch.cat(values).mean() * (P @ Qh) @ (R @ Th)


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 24), st.integers(3, 24), st.integers(0, 99))
def test_iso_c_equals_the_formula(rows: int, cols: int, seed: int):
    """For any shape, weights and factor."""
    found = models(rows, cols, seed)
    made = edited(iso("iso_c", weights={"a": 1, "b": -0.5, "c": 2}, alpha=0.7), found["a"], found)
    base, a, b, c = (W.double() for W in found.values())
    expected = flattened(base, (a - base) - 0.5 * (b - base) + 2 * (c - base), 0.7)
    assert (made - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
@pytest.mark.parametrize(("common", "c"), [("80%", 17), ("50%", 11), (2, 2), (15, 14), (0, 2), ("95%", 20)])
def test_iso_cts_equals_the_formula(shape: tuple[int, int], common: object, c: int):
    """Whatever is common, rounded so that the tasks have equal parts of the rest."""
    found = models(*shape)
    base, *tuned = (W.double() for W in found.values())
    tasks = [w * (W - base) for w, W in zip((1, 2, 0.5), tuned, strict=True)]
    expected = with_tasks(base, tasks, c, 0.7)
    made = edited(iso("iso_cts", common=common, weights=[1, 2, 0.5], alpha=0.7), found["a"], found)
    assert (made - expected).norm() < 1e-4 * (expected - base).norm()


def test_without_a_rest_it_is_iso_c():
    """With `common: all`, and with one model whatever is common."""
    found = models()
    assert torch.equal(
        edited(iso("iso_cts", common="all"), found["a"], found),
        edited(iso("iso_c"), found["a"], found),
    )
    one = edited(iso("iso_cts", ("a",), common="50%"), found["a"], found)
    assert torch.allclose(one, edited(iso("iso_c", ("a",)), found["a"], found), atol=1e-5)


@pytest.mark.parametrize("op", ["iso_c", "iso_cts"])
def test_the_spectrum_is_flat(op: str):
    """All singular values of what is added agree; for iso_c their sum is that of the sum of the task vectors."""
    found = models()
    values = torch.linalg.svdvals((edited(iso(op), found["a"], found) - found["base"]).double())
    assert torch.allclose(values, values.mean(), rtol=1e-4)
    if op == "iso_c":
        total = sum((found[role] - found["base"]).double() for role in ROLES)
        assert torch.allclose(values.sum(), torch.linalg.svdvals(total).sum(), rtol=1e-5)


@pytest.mark.parametrize("op", ["iso_c", "iso_cts"])
def test_directions_of_value_zero_are_left_out(op: str):
    """Where the task vectors have 5 directions, so has the result, and the mean is over these."""
    generator = torch.Generator().manual_seed(1)
    base = torch.zeros(30, 20)
    d = with_values(generator, 30, 20, torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64)).float()
    added = edited(iso(op, ("a", "b")), d, {"base": base, "a": d, "b": d.clone()})
    expected = torch.tensor([6.0] * 5 + [0.0] * 15) if op == "iso_c" else None
    values = torch.linalg.svdvals(added)
    assert values[5:].max() < 1e-5
    assert expected is None or torch.allclose(values, expected, atol=1e-4)


@pytest.mark.parametrize("op", ["iso_c", "iso_cts"])
def test_task_vectors_that_vanish(op: str):
    """Those of zeros give the base, and so do those that cancel."""
    found = models(roles=("a",))
    still = {"base": found["base"], "a": found["base"].clone(), "b": found["base"].clone()}
    assert torch.equal(edited(iso(op, ("a", "b")), found["a"], still), found["base"])
    base, d = torch.zeros(30, 20), normal(torch.Generator().manual_seed(1), 30, 20).float()
    assert edited(iso(op, ("a", "b")), d, {"base": base, "a": d, "b": -d}).norm() < 1e-6 * d.norm()


@pytest.mark.parametrize("op", ["iso_c", "iso_cts"])
def test_order_and_scale(op: str):
    """The order of the models does not matter, and alpha scales what is added."""
    found = models()
    made = edited(iso(op), found["a"], found)
    assert torch.allclose(edited(iso(op, ("c", "a", "b")), found["a"], found), made, atol=1e-5)
    twice = edited(iso(op, alpha=2), found["a"], found)
    assert torch.allclose(twice - found["base"], 2 * (made - found["base"]), atol=1e-5)


def test_faults():
    """What is common is a count or a percentage."""
    with pytest.raises(ValidationError, match=r"found `0\.8`; expected a count such as `64`, a percentage"):
        iso("iso_cts", common=0.8)
