"""The eight merges that sum task vectors, against the formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import surgery
from surgery.ops import OPS
from tests.ops.sums import BASE, ELECTING, MODELS, RANDOM, SOURCES, SPARSE, SUMS, N, kept, made, op
from tests.ops.whole import edited
from tests.pairs import llama, near, read, write


def merged(vectors: list[Tensor], weights: list[float], *, elects: bool, normalize: bool, factor: float) -> Tensor:
    """base + factor * the sum of float64 vectors, entry by entry, as the papers describe it."""
    result = BASE.double().flatten().clone()
    columns = [v.flatten().tolist() for v in vectors]
    for p in range(N):
        terms = [(w * column[p], w) for w, column in zip(weights, columns, strict=True)]
        if elects:
            sign = 1 if sum(term for term, _ in terms) >= 0 else -1
            terms = [(term, w) for term, w in terms if term * sign > 0]
        divisor = sum(w for _, w in terms) if normalize else 1
        result[p] += factor * sum(term for term, _ in terms) / (divisor or 1)
    return result.view_as(BASE)


def task_vector(role: str) -> Tensor:
    return (MODELS[role] - BASE).double()


def trimmed(v: Tensor, density: float) -> Tensor:
    """The largest, by a sort."""
    order = sorted(range(N), key=lambda p: -abs(v.flatten()[p].item()))[: int(density * N)]
    mask = torch.zeros(N, dtype=torch.bool)
    mask[order] = True
    return v * mask.view_as(v)


def window(v: Tensor, density: float, gamma: float) -> Tensor:
    """As mergekit counts: from the smallest, up to so many."""
    kept, above = int(density * N), int(gamma * N)
    below = max(0, N - kept - above)
    order = sorted(range(N), key=lambda p: abs(v.flatten()[p].item()))[below : below + kept]
    mask = torch.zeros(N, dtype=torch.bool)
    mask[order] = True
    return v * mask.view_as(v)


def at_random(name: str, **parameters: Any) -> Callable[[str, Tensor, float], Tensor]:
    """What is kept is taken from the operation itself; its distribution is tested below."""

    def sparse(role: str, v: Tensor, density: float) -> Tensor:
        return v * kept(name, role, density=density, **parameters)

    return sparse


REFERENCES: dict[str, Callable[[str, Tensor, float], Tensor]] = {
    "ties": lambda _, v, density: trimmed(v, density),
    "breadcrumbs": lambda _, v, density: window(v, density, 0.05),
    "breadcrumbs_ties": lambda _, v, density: window(v, density, 0.05),
    **{name: at_random(name) for name in RANDOM if name.startswith("dare")},
    **{name: at_random(name, epsilon=0.1) for name in RANDOM if name.startswith("della")},
}
EXTRA: dict[str, dict[str, Any]] = {
    "breadcrumbs": {"gamma": 0.05},
    "breadcrumbs_ties": {"gamma": 0.05},
    "della": {"epsilon": 0.1},
    "della_linear": {"epsilon": 0.1},
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.4, 1.5]])
@pytest.mark.parametrize("name", SPARSE)
def test_equals_the_formula(name: str, weights: list[float], rescale: bool, normalize: bool):
    """Sparsify, rescale, weigh, elect, sum, divide, scale: to the precision of float32."""
    densities = [0.3, 0.5, 0.8]
    vectors = []
    for role, density in zip(MODELS, densities, strict=True):
        v = task_vector(role)
        sparse = REFERENCES[name](role, v, density)
        scale = 1 / density if name.startswith("dare") else v.abs().sum() / sparse.abs().sum()
        vectors.append(sparse * scale if rescale else sparse)
    found = made(
        name,
        weights=weights,
        density=densities,
        rescale=rescale,
        normalize=normalize,
        **EXTRA.get(name, {}),
        **{"lambda": 0.6},
    )
    expected = merged(vectors, weights, elects=name in ELECTING, normalize=normalize, factor=0.6)
    assert (found - expected).abs().max() < 2e-6


@pytest.mark.parametrize("normalize", [False, True])
def test_task_arithmetic_equals_the_formula(normalize: bool):
    """b + lambda sum w d, over sum w if normalised."""
    weights = [0.5, -0.25, 1.0]
    total = sum(w * task_vector(role) for w, role in zip(weights, MODELS, strict=True))
    expected = BASE.double() + 0.8 * total / (sum(weights) if normalize else 1)
    found = made("task_arithmetic", weights=weights, normalize=normalize, **{"lambda": 0.8})
    assert (found - expected).abs().max() < 1e-6


def test_defaults():
    """Those of mergekit 0.1.5; weights are 1, as in the papers."""
    table = {
        "task_arithmetic": (False, None),
        "ties": (True, False),
        "dare_linear": (False, True),
        "dare_ties": (False, True),
        "breadcrumbs": (False, False),
        "breadcrumbs_ties": (False, False),
        "della": (True, True),
        "della_linear": (False, True),
    }
    for name, expected in table.items():
        step = op(name)
        assert (step.normalize, getattr(step, "rescale", None)) == expected
        assert (step.weights, step.lambda_) == ((1.0, 1.0, 1.0), 1.0)
    assert op("breadcrumbs").gamma == (0.01,) * 3
    assert op("della").epsilon == (0.15,) * 3


@pytest.mark.parametrize("name", SPARSE)
def test_density_1_without_election_is_task_arithmetic(name: str):
    """And with it, where one model votes; it needs one pass."""
    models = ["x"] if name in ELECTING else ["x", "y", "z"]
    assert torch.equal(made(name, models=models, normalize=False), made("task_arithmetic", models=models))
    assert op(name, models=models).passes == 1


@pytest.mark.parametrize(("density", "epsilon"), [(0.93, 0.07), (0.67, 0.33), (0.07, 0.07)])
def test_della_may_reach_0_and_1(density: float, epsilon: float):
    """Probabilities up to 1, and down to 0, however their sum is rounded."""
    assert op("della", density=density, epsilon=epsilon).density == (density,) * 3


@pytest.mark.parametrize("name", SPARSE)
def test_density_0_is_the_base(name: str):
    """Nothing is kept, and nothing is divided by 0."""
    assert torch.equal(made(name, density=0, **({"epsilon": 0} if name.startswith("della") else {})), BASE)


@pytest.mark.parametrize("name", SUMS)
def test_one_model_alone(name: str):
    """With weight 1 it is that model, to rounding; with weight 0 the base."""
    assert torch.allclose(made(name, models=["y"]), MODELS["y"], atol=1e-6)
    assert torch.equal(made(name, models=["y"], weights=[0]), BASE)


@pytest.mark.parametrize("name", SUMS)
def test_weights_scale(name: str):
    """Without `normalize` twice the weights give twice the change; with it they change nothing. So does lambda."""
    extra = {} if name == "task_arithmetic" else {"density": 0.5}
    once, twice = (made(name, weights=[w, 2 * w, w], normalize=False, **extra) - BASE for w in (0.5, 1.0))
    assert torch.allclose(twice, 2 * once, atol=1e-6)
    scaled = made(name, weights=[0.5, 1.0, 0.5], normalize=False, **extra, **{"lambda": 2}) - BASE
    assert torch.allclose(scaled, twice, atol=1e-6)
    once, twice = (made(name, weights=[w, 2 * w, w], normalize=True, **extra) for w in (0.5, 1.0))
    assert torch.allclose(once, twice, atol=1e-6)


@pytest.mark.parametrize("name", SUMS)
def test_the_order_of_models_does_not_matter(name: str):
    """Beyond rounding: what is random belongs to the role."""
    extra = {} if name == "task_arithmetic" else {"density": {"x": 0.3, "y": 0.5, "z": 0.6}}
    forth, back = (
        made(name, models=models, weights={"x": 1, "y": 0.5, "z": 2}, **extra)
        for models in (["x", "y", "z"], ["z", "y", "x"])
    )
    assert torch.allclose(forth, back, atol=1e-6)


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("shape", [(1200,), (6, 10, 20), (1,), (3, 1)])
def test_any_shape_and_any_pieces(name: str, shape: tuple[int, ...]):
    """The result of pieces is that of the whole; vectors, stacks, and single entries are taken."""
    count = math.prod(shape)
    sources = {role: W.flatten()[:count].view(shape) for role, W in SOURCES.items()}
    extra = {} if name == "task_arithmetic" else {"density": 0.4, "rescale": False}
    at_once = made(name, sources, **extra)
    assert at_once.shape == shape
    assert torch.allclose(made(name, sources, elements=77, rows=7, **extra), at_once, rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", SUMS)
def test_models_that_are_the_base(name: str):
    """Task vectors of 0 change nothing."""
    extra = {} if name == "task_arithmetic" else {"density": 0.4}
    assert torch.equal(made(name, dict.fromkeys(SOURCES, BASE), **extra), BASE)


@pytest.mark.parametrize("name", SUMS)
def test_an_empty_tensor(name: str):
    """Has nothing to measure."""
    empty = dict.fromkeys(SOURCES, torch.zeros(0, 4))
    extra = {} if name == "task_arithmetic" else {"density": 0.4, "rescale": True}
    assert made(name, empty, **extra).shape == (0, 4)


@pytest.mark.parametrize("name", SUMS)
def test_what_is_no_number_stays_none(name: str):
    """NaN and infinity in a model are in the result, dropped or not, so that the executor refuses it."""
    extra = {} if name == "task_arithmetic" else {"density": 0.2, "rescale": False}
    for value in (torch.nan, torch.inf):
        broken = {**SOURCES, "y": MODELS["y"].clone()}
        broken["y"][3:6, 4:8] = value
        assert not made(name, broken, **extra)[3:6, 4:8].isfinite().any()


def test_nothing_is_divided_by_weights_that_are_0_or_cancel():
    """All weights 0 give the base; where the weights that agree cancel, the sum stays a sum."""
    for name in SUMS:
        assert torch.equal(made(name, weights=0, normalize=True), BASE)
    sources = {"base": torch.zeros(1), "x": torch.tensor([3.0]), "y": torch.tensor([-2.0]), "z": torch.zeros(1)}
    assert torch.equal(made("ties", sources, weights=[1, -1, 1]), torch.tensor([5.0]))


def test_the_sign_of_the_sum_decides():
    """Not that of the majority, and 0 counts as positive."""
    sources = {
        "base": torch.zeros(4),
        "x": torch.tensor([3.0, -1.0, 1.0, 0.0]),
        "y": torch.tensor([-1.0, -1.0, -1.0, 0.0]),
        "z": torch.tensor([-1.0, 3.0, 0.0, 2.0]),
    }
    assert torch.equal(made("ties", sources), torch.tensor([3.0, 3.0, 1.0, 2.0]))
    assert torch.equal(made("ties", sources, weights=[1, 2, 2]), torch.tensor([-1.0, 3.0, -1.0, 2.0]))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ties", {"density": 1.5}, "found `1.5`; expected a number between 0 and 1"),
        ("ties", {"density": {"x": 0.5, "y": [0.5, -1], "z": 1}}, "found `-1.0`; expected a number between 0 and 1"),
        ("ties", {"density": [0.5, 0.5]}, "found 2 density for 3 models; expected one a model"),
        ("breadcrumbs", {"gamma": -0.1}, "found `-0.1`; expected a number between 0 and 1"),
        ("dare_ties", {"seed": -1}, "greater than or equal to 0"),
        (
            "della",
            {"density": 0.9, "epsilon": [0.1, 0.2, 0.1]},
            r"`y` with density 0.9 and epsilon 0.2 would keep .* 0.7 to 1.1",
        ),
        ("della", {"density": 0.1}, r"`x` with density 0.1 and epsilon 0.15 would keep .* -0.05 to 0.25"),
        (
            "task_arithmetic",
            {"weights": [1, 1, -2], "normalize": True},
            r"\[1.0, 1.0, -2.0\] sum to 0, .* set `normalize: false`",
        ),
        ("ties", {"models": ["x", "base"]}, "`base` is the base and among `models`"),
        ("task_arithmetic", {"density": 0.5}, "Extra inputs are not permitted"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, parameters: dict[str, Any], message: str):
    """Numbers out of range, of the wrong count, or that do not go together."""
    with pytest.raises(ValidationError, match=message):
        op(name, **parameters)


def test_float64_is_computed_in_float64():
    """And magnitudes are still compared in float32, so that float64 copies of float32 models lose the same entries."""
    double = {role: W.double() for role, W in SOURCES.items()}
    for name in SPARSE:
        found = made(name, double, density=0.4)
        assert found.dtype == torch.float64
        assert (found - made(name, density=0.4)).abs().max() < 1e-5
        assert ((found - BASE).abs() < 1e-12).sum() == (made(name, density=0.4) == BASE).sum()


def test_in_a_recipe(tmp_path: Path):
    """Numbers may differ from tensor to tensor and be parameters; the recipe reads back; workers do not matter."""
    base = llama(dtype=torch.float32, layers=3)
    pair = [write(tmp_path / "base", base), write(tmp_path / "sft", near(base))]
    density = [{"tensors": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}]
    for name in SPARSE:
        step = {"op": name, "base": "base", "models": ["sft"], "density": {"sft": density}, "lambda": "$lambda"}
        recipe = {"name": name, "models": ["base", "sft"], "parameters": {"lambda": 0.5}, "steps": [step]}
        made_ = surgery.apply(recipe, pair, tmp_path / name, workers=2)
        assert surgery.plan(made_.plan.recipe.canonical(), pair) == made_.plan
        found, sft = read(tmp_path / name), read(pair[1])
        for layer, share in ((0, 0.2), (1, 0.5), (2, 0.8)):
            tensor = f"model.layers.{layer}.mlp.down_proj.weight"
            sources = {"base": base[tensor], "sft": sft[tensor]}
            own = OPS[name].model_validate({**step, "density": share, "lambda": 0.5})
            assert torch.equal(found[tensor], edited(own, base[tensor], sources, name=tensor))


def test_without_models_nothing_else_is_reported():
    """What is missing is, and not the numbers that would have gone with it."""
    with pytest.raises(ValidationError) as caught:
        OPS["ties"].model_validate({"op": "ties", "base": "base", "density": 0.5})
    assert [error["loc"] for error in caught.value.errors()] == [("models",)]


def test_weights_that_cancel_up_to_rounding():
    """As weights that cancel: 0.6 + 0.1 - 0.7 is not 0 in float32, and nothing is divided by what remains."""
    sources = {"base": torch.zeros(1), "x": torch.ones(1), "y": torch.ones(1), "z": -torch.ones(1)}
    found = made("ties", sources, weights=[0.6, 0.1, -0.7])
    assert torch.allclose(found, torch.tensor([1.4]))


def test_rules_for_all_models():
    """A list of rules that select is one for all models, not one rule a model."""
    rules = [{"tensors": "mlp", "value": 0.5}, {"value": 0.25}]
    common = {"op": "ties", "base": "base", "models": ["x", "y"]}
    all_models = OPS["ties"].model_validate({**common, "density": rules})
    assert len(all_models.density) == 2
    assert all_models.density[0] == all_models.density[1]
    each = OPS["ties"].model_validate({**common, "density": [0.5, {"value": [0, 1]}]})
    assert each.density[0] == 0.5
    assert each.density[1] != 0.5
