"""Merges that measure, by rows and otherwise, in the executor: as on whole tensors in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from tests.ops.whole import edited
from tests.pairs import LLAMA_CONFIG, llama, near, read, write

MODELS = ("base", "a", "b")
TWO = {"models": ["a", "b"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two models made from it, in bfloat16."""
    root = tmp_path_factory.mktemp("models")
    base = llama(layers=2)
    tensors = {"base": base, "a": near(base, seed=1), "b": near(base, seed=2)}
    return [write(root / role, tensors[role], shards=2) for role in MODELS]


@pytest.mark.parametrize(
    "step",
    [
        {"op": "nuslerp", **TWO, "base": "base", "weights": {"a": 1, "b": 2}},
        {"op": "nuslerp", **TWO, "angles": "rows"},
        {"op": "nuslerp", **TWO, "base": "base", "angles": "columns"},
        {"op": "multislerp", **TWO, "base": "base", "weights": [1, 2]},
        {"op": "karcher", "models": ["base", "a", "result"]},
        {"op": "model_stock", **TWO, "base": "base"},
        {"op": "model_stock", **TWO, "base": "base", "filter_wise": True},
        {"op": "nearswap", "models": ["a"], "base": "b", "t": 0.05},
        {"op": "arcee_fusion", "models": ["a"], "base": "base"},
        {"op": "passthrough", "models": ["a"], "scale": 0.5},
        {"op": "wise_ft", "models": ["a"], "base": "base", "alpha": 0.3},
    ],
    ids=lambda step: " ".join(str(value) for value in step.values() if isinstance(value, str | bool)),
)
def test_equals_the_operation_on_whole_tensors(models: list[Path], tmp_path: Path, step: dict[str, Any]):
    """Every tensor, vectors too, and with several workers; the result is cast once."""
    read_by = {*step["models"], step.get("base")}
    roles = [role for role in MODELS if role in read_by or role == "b"]
    recipe = {"name": "x", "models": roles, "steps": [step]}
    paths = [path for role, path in zip(MODELS, models, strict=True) if role in roles]
    done = surgery.apply(recipe, paths, tmp_path / "out", workers=2)
    op = done.plan.recipe.steps[0]
    tensors = {role: read(path) for role, path in zip(roles, paths, strict=True)}
    for name, found in read(tmp_path / "out").items():
        sources = {role: tensors[role][name].float() for role in roles}
        expected = edited(op, tensors["b"][name].float(), sources).to(torch.bfloat16)
        assert torch.equal(found, expected), name


@pytest.mark.parametrize(
    "step",
    [
        {"op": "dare_ties", **TWO, "base": "base", "density": 0.5},
        {"op": "della", **TWO, "base": "base", "density": 0.5},
        {"op": "slerp", **TWO, "t": [{"tensors": "embedding", "value": 0.9}, {"value": 0.1}]},
    ],
    ids=lambda step: step["op"],
)
def test_a_tied_head_that_is_stored_stays_equal(tmp_path: Path, step: dict[str, Any]):
    """To its embedding: both have the same random choices, and the same of what differs from tensor to tensor."""
    config = {**LLAMA_CONFIG, "tie_word_embeddings": True}
    base = llama(layers=1)
    paths = []
    for seed, role in enumerate(MODELS):
        tensors = near(base, seed=seed)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        paths.append(write(tmp_path / role, tensors, config=config))
    used = [role for role in MODELS if role in {*step["models"], step.get("base")}]
    recipe = {"name": "x", "models": used, "steps": [step]}
    surgery.apply(recipe, [path for role, path in zip(MODELS, paths, strict=True) if role in used], tmp_path / "out")
    found = read(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
