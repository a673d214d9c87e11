"""The bundled recipes of the plain merges, on small checkpoints: what they give, and what a sweep can vary."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from evalkit.sweeps.grid import expand
from evalkit.sweeps.loading import load
from surgery import bundled
from surgery.ops import OPS
from surgery.yaml_source import read_yaml
from tests.ops.whole import edited
from tests.pairs import llama, near, read, write

TWO = {"models": ["first", "second"]}
STEPS: dict[str, dict[str, Any]] = {
    "merge-linear": {"op": "linear", **TWO, "weights": [0.5, 0.5]},
    "merge-slerp": {"op": "slerp", **TWO, "t": 0.5},
    "merge-ties": {"op": "ties", "base": "base", **TWO, "density": 0.2},
    "merge-dare-ties": {"op": "dare_ties", "base": "base", **TWO, "density": 0.5, "normalize": True},
}
OTHERS = ("merge-tsv", "merge-iso-c", "merge-iso-cts", "merge-knots")
README = (Path(__file__).parent.parent.parent / "recipes" / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models made from it."""
    root = tmp_path_factory.mktemp("models")
    base = llama(layers=2)
    return [write(root / str(i), near(base, seed=i) if i else base) for i in range(4)]


@pytest.mark.parametrize("name", STEPS)
def test_equals_the_operation(models: list[Path], tmp_path: Path, name: str) -> None:
    """Of every tensor, embeddings and norms as well, rounded once."""
    roles = ["base", "first", "second"] if "base" in STEPS[name] else ["first", "second"]
    paths = dict(zip(roles, models if "base" in roles else models[1:], strict=False))
    tensors = {role: read(path) for role, path in paths.items()}
    op = OPS[STEPS[name]["op"]].model_validate(STEPS[name])
    surgery.apply(name, list(paths.values()), tmp_path / "out")
    for tensor, found in read(tmp_path / "out").items():
        sources = {role: tensors[role][tensor].float() for role in roles}
        expected = edited(op, sources[roles[0]], sources, name=tensor).to(found.dtype)
        assert torch.equal(found, expected), tensor


@pytest.mark.parametrize("name", STEPS)
def test_a_sweep_varies_each_parameter(name: str) -> None:
    """Two values of each make as many candidates."""
    recipe = read_yaml(bundled.read(name), name).data
    grid = {"t": [0.3, 0.7], "density": [0.1, 0.3], "weights": [1, [1, 0.5]], "lambda": [0.5, 1], "seed": [0, 1]}
    chosen = {key: values for key, values in grid.items() if key in recipe["parameters"]}
    assert set(chosen) == set(recipe["parameters"])
    sweep = {
        "name": "merges",
        "summary": "Merges.",
        "models": recipe["models"],
        "variants": [{"recipe": name, "grid": chosen}],
        "evaluation": {"task": "general_points", "splits": ["id", "ood"], "n": 4},
        "objective": {"improve": {"id": 1}},
    }
    assert len(expand(*load(sweep))) >= 2 ** len(chosen)


@pytest.mark.parametrize("name", [*STEPS, *OTHERS])
def test_a_third_model_is_a_role_in_every_list(models: list[Path], name: str) -> None:
    """As recipes/README.md tells; `slerp` says what takes three."""
    recipe = read_yaml(bundled.read(name), name).data
    recipe["models"].append("third")
    for step in recipe["steps"]:
        step["models"].append("third")
    if name == "merge-linear":
        recipe["steps"][0]["weights"]["third"] = 0.2
    paths = models[4 - len(recipe["models"]) :]
    if name == "merge-slerp":
        with pytest.raises(surgery.SurgeryError, match="found 3 models; `slerp` merges two; a step after it can merge"):
            surgery.plan(recipe, paths)
    else:
        assert all("third" in {source.role for source in each.inputs} for each in surgery.plan(recipe, paths).tensors)


def test_the_recipe_of_three_that_is_shown_runs(models: list[Path]) -> None:
    """That of recipes/README.md, with its parameter."""
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    made = surgery.plan(read_yaml(shown, "README.md").data, models, settings={"density": "0.3"})
    assert {tensor.steps for tensor in made.tensors} == {(0,)}
