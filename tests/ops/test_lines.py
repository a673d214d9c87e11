from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import surgery
from surgery.ops.lines import Lines
from tests.ops.whole import edited
from tests.pairs import llama, near, read, write

LAYERS = 5


def lines(**more: Any) -> Lines:
    step = {"op": "lines", "base": "base", "models": ["a", "b"], "alpha": 0.5, "beta": 1.5, **more}
    return Lines.model_validate(step, context={"roles": ("base", "a", "b")})


@pytest.mark.parametrize("depth", [0, 0.25, 1])
def test_equals_the_formula(depth: float):
    """At a depth, in float64: b + (alpha + beta l) sum_i w_i d_i."""
    generator = torch.Generator().manual_seed(29)
    base, a, b = (torch.randn(30, 20, generator=generator) for _ in range(3))
    found = edited(lines(depth=depth, weights=[1, 0.5]), base, {"base": base, "a": a, "b": b}, elements=7)
    wanted = base.double() + (0.5 + 1.5 * depth) * ((a - base).double() + 0.5 * (b - base).double())
    assert torch.allclose(found.double(), wanted, atol=1e-5)


def made(tmp_path: Path, **more: Any) -> tuple[dict[str, torch.Tensor], ...]:
    """Base, tuned and merged tensors of a model of five layers."""
    base = llama(dtype=torch.float32, layers=LAYERS)
    tuned = near(base)
    models = write(tmp_path / "base", base), write(tmp_path / "sft", tuned)
    step = {"op": "lines", "base": "base", "models": ["sft"], "alpha": 0.2, "beta": 0.8, **more}
    surgery.apply({"name": "x", "models": ["base", "sft"], "steps": [step]}, models, tmp_path / "out")
    return base, tuned, read(tmp_path / "out")


def check(tensors: tuple[dict[str, torch.Tensor], ...], factors: dict[str, float]) -> None:
    base, tuned, out = tensors
    for name in out:
        factor = next(value for part, value in factors.items() if part in name)
        assert torch.allclose(out[name], base[name] + factor * (tuned[name] - base[name]), atol=1e-6), name


def test_factors_grow_with_depth(tmp_path: Path):
    """From alpha in the first layer to alpha + beta in the last; alpha for all that is in no layer."""
    check(made(tmp_path), {**{f"layers.{i}.": 0.2 + 0.8 * i / (LAYERS - 1) for i in range(LAYERS)}, "": 0.2})


def test_another_depth(tmp_path: Path):
    """A list over the layers, or rules: here the first half of the layers and all else count as the first layer."""
    rules = [{"tensors": "lm_head", "value": 1}, {"value": [0, 0, 1]}]
    depths = (0, 0, 0, 0.5, 1)
    expected = {**{f"layers.{i}.": 0.2 + 0.8 * depth for i, depth in enumerate(depths)}, "lm_head": 1.0, "": 0.2}
    check(made(tmp_path, depth=rules), expected)


def test_a_flat_line_is_task_arithmetic(tmp_path: Path):
    """beta = 0 and alpha = 1 give the tuned model, to rounding."""
    check(made(tmp_path, alpha=1, beta=0), {"": 1.0})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"depth": 2}, "found `2.0`; expected a number between 0 and 1"),
        ({"weights": [1]}, "found 1 weights for 2 models"),
        ({"alpha": None}, "found nothing; expected a number"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any], message: str):
    """Depths beyond the layers, weights for other models, and no factor."""
    with pytest.raises(ValidationError, match=message):
        lines(**more)
