from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.tsv import Tsv
from tests.ops.whole import edited
from tests.strategies import normal, weight, with_values

ROLES = ("a", "b", "c")


def tsv(models: tuple[str, ...] = ROLES, **keys: Any) -> Tsv:
    return Tsv.model_validate({"op": "tsv", "base": "base", "models": models, **keys})


def models(
    rows: int = 30, cols: int = 20, seed: int = 0, kind: str = "decaying", roles: tuple[str, ...] = ROLES
) -> dict[str, Tensor]:
    """A base and models at some distance from it, in float32."""
    generator = torch.Generator().manual_seed(seed)
    base = normal(generator, rows, cols)
    return {"base": base.float(), **{role: (base + weight(generator, kind, rows, cols)).float() for role in roles}}


def reference(found: dict[str, Tensor], factors: tuple[float, ...], alpha: float = 1.0) -> Tensor:
    """As the paper's algorithm has it, by full SVDs in float64."""
    base, *others = (W.double() for W in found.values())
    r = min(base.shape) // len(others)
    triplets = [torch.linalg.svd(w * (W - base), full_matrices=False) for w, W in zip(factors, others, strict=True)]
    U = torch.cat([U[:, :r] for U, _, _ in triplets], 1)
    S = torch.cat([S[:r] for _, S, _ in triplets])
    V = torch.cat([Vh[:r] for _, _, Vh in triplets])
    P, _, Qh = torch.linalg.svd(U, full_matrices=False)
    R, _, Th = torch.linalg.svd(V, full_matrices=False)
    return base + alpha * (P @ Qh) @ torch.diag(S) @ (R @ Th)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 24), st.integers(3, 24), st.integers(0, 99), st.sampled_from(("flat", "decaying")))
def test_equals_the_algorithm(rows: int, cols: int, seed: int, kind: str):
    """For any shape, weights and factor, to the precision of float32 and the condition of the problem."""
    found = models(rows, cols, seed, kind)
    made = edited(tsv(weights=[1, -0.5, 2], alpha=0.7), found["a"], found)
    expected = reference(found, (1, -0.5, 2), 0.7)
    assert (made - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_equals_the_algorithm_closely(shape: tuple[int, int]):
    """Of well-conditioned matrices, and without weights."""
    found = models(*shape)
    expected = reference(found, (1, 1, 1))
    assert (edited(tsv(), found["a"], found) - expected).norm() < 1e-5 * expected.norm()


def test_factors_stay_orthonormal():
    """The singular values of what is added are the leading third of each task's: no task loses strength."""
    found = models()
    added = (edited(tsv(), found["a"], found) - found["base"]).double()
    values = [torch.linalg.svdvals((found[role] - found["base"]).double())[:6] for role in ROLES]
    expected = torch.cat(values).sort(descending=True).values
    assert torch.allclose(torch.linalg.svdvals(added)[:18], expected, rtol=1e-4)
    assert torch.linalg.svdvals(added)[18:].max() < 1e-5


def test_tasks_in_orthogonal_subspaces_add_up():
    """Low-rank task vectors without interference are summed as they are."""
    generator = torch.Generator().manual_seed(0)
    X = with_values(generator, 30, 20, torch.arange(12.0, 0, -1, dtype=torch.float64))
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    base = normal(generator, 30, 20)
    parts = [U[:, i : i + 4] * S[i : i + 4] @ Vh[i : i + 4] for i in (0, 4, 8)]
    found = {"base": base.float()} | {role: (base + part).float() for role, part in zip(ROLES, parts, strict=True)}
    assert torch.allclose(edited(tsv(), found["a"], found).double(), base + X, atol=2e-5)


def test_one_model_is_itself():
    """A single task vector comes back whole, scaled."""
    found = models(roles=("a",))
    made = edited(tsv(("a",), weights=0.5, alpha=0.5), found["a"], found)
    assert torch.allclose(made, found["base"] + 0.25 * (found["a"] - found["base"]), atol=1e-5)


def test_equal_models_count_once():
    """Of equal task vectors the truncated one is added, and nothing outside of their span."""
    found = models(roles=("a",))
    d = (found["a"] - found["base"]).double()
    U, S, Vh = torch.linalg.svd(d, full_matrices=False)
    expected = found["base"].double() + U[:, :10] * S[:10] @ Vh[:10]
    made = edited(tsv(("a", "b")), found["a"], {**found, "b": found["a"].clone()})
    assert torch.allclose(made.double(), expected, atol=1e-5)


def test_zero_task_vectors_add_nothing():
    """A model equal to the base leaves no trace but the rank that it takes; all equal to it give the base."""
    found = models(roles=("a",))
    still = found["base"].clone()
    made = edited(tsv(("a", "b")), found["a"], {**found, "b": still})
    assert torch.allclose(made, edited(tsv(("b", "a")), found["a"], {**found, "b": still}), atol=1e-5)
    assert torch.linalg.matrix_rank((made - found["base"]).double(), rtol=1e-4) == 10
    assert torch.equal(edited(tsv(("b", "c")), still, {"base": still, "b": still.clone(), "c": still.clone()}), still)


def test_directions_of_value_zero_are_left_out():
    """Of task vectors of low rank only what they hold counts: the rest of their singular vectors is arbitrary."""
    generator = torch.Generator().manual_seed(1)
    base = torch.zeros(30, 20)
    a, b = (with_values(generator, 30, 20, torch.ones(2, dtype=torch.float64)).float() for _ in range(2))
    added = edited(tsv(("a", "b")), a, {"base": base, "a": a, "b": b})
    assert torch.allclose(torch.linalg.svdvals(added), torch.tensor([1.0] * 4 + [0.0] * 16), atol=1e-5)


def test_more_models_than_directions_leave_the_base():
    """Then no triplet of any is kept, and the plan says so."""
    found = models(5, 2)
    assert torch.equal(edited(tsv(), found["a"], found), found["base"])
    assert tsv().remark((5, 2)) == "leaves the base's: 3 models, 2 directions"
    assert tsv().remark((5, 3)) is None


def test_experts_are_merged_one_by_one():
    """A 3-D stack gives what each of its matrices gives."""
    first, second = models(seed=1), models(seed=2)
    stacks = {role: torch.stack([first[role], second[role]]) for role in first}
    made = edited(tsv(), stacks["a"], stacks)
    assert torch.equal(made, torch.stack([edited(tsv(), x["a"], x) for x in (first, second)]))


def test_float64_stays():
    """A merge of float64 matrices is computed in float64."""
    found = {role: W.double() for role, W in models().items()}
    made = edited(tsv(), found["a"], found)
    assert made.dtype == torch.float64
    assert (made - reference(found, (1, 1, 1))).norm() < 1e-12 * made.norm()


def test_the_running_tensor_may_be_merged():
    """`result` among the models is W."""
    found = models(roles=("a", "b"))
    sources = {"base": found["base"], "b": found["b"]}
    assert torch.equal(edited(tsv(("result", "b")), found["a"], sources), edited(tsv(("a", "b")), found["b"], found))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base": "a"}, "`a` is the base and among `models`"),
        ({"weights": [1, 2]}, "found 2 weights for 3 models"),
        ({"alpha": "x"}, "found `x`; expected a number"),
        ({"models": []}, "found 0 models; `tsv` merges one or more, beside `base`"),
    ],
)
def test_faults(keys: dict[str, Any], message: str):
    """Each is told."""
    with pytest.raises(ValidationError, match=message):
        tsv(**keys)
