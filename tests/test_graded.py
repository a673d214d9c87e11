from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.errors import PlanError, RecipeError
from tests.pairs import llama, near, read, write

LAYERS = 5
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of five layers, in float32."""
    root = tmp_path_factory.mktemp("pair")
    base = llama(dtype=torch.float32, layers=LAYERS)
    return write(root / "base", base), write(root / "sft", near(base))


def made(pair: tuple[Path, Path], out: Path, weight: Any) -> tuple[Tensors, Tensors, Tensors]:
    """base, sft, and base + weight (sft - base)."""
    recipe = {
        "name": "blend",
        "models": ["base", "sft"],
        "steps": [{"op": "linear", "models": ["base", "sft"], "weights": ["rest", weight]}],
    }
    recipe["steps"][0]["weights"] = {"base": "rest", "sft": weight}
    surgery.apply(recipe, pair, out)
    return read(pair[0]), read(pair[1]), read(out)


def check(base: Tensors, sft: Tensors, out: Tensors, expected: dict[str, float]) -> None:
    """Each tensor has the weight of the first key that its name contains."""
    for name, tensor in out.items():
        t = next(value for part, value in expected.items() if part in name)
        assert torch.allclose(tensor, (1 - t) * base[name] + t * sft[name], atol=1e-6), name


def test_a_list_is_interpolated_over_depth(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Layer i of n has depth i / (n - 1); what is outside of the layers has the first value."""
    depth = {f"layers.{i}.": t for i, t in enumerate((0, 0.5, 1, 0.75, 0.5))}
    check(*made(pair, tmp_path / "out", [0, 1, 0.5]), {**depth, "": 0})


def test_rules(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A tensor has the value of the first rule that selects it: groups, globs, layers, and the rest."""
    rules = [
        {"tensors": "*.q_proj.*", "value": 1},
        {"tensors": ["mlp"], "layers": "first 2", "value": [0, 1]},
        {"tensors": "attention", "exclude": "*.o_proj.*", "value": 0.25},
        {"value": 0.5},
    ]
    expected = {"q_proj": 1, "layers.0.mlp": 0, "layers.1.mlp": 0.25, "k_proj": 0.25, "v_proj": 0.25, "": 0.5}
    check(*made(pair, tmp_path / "out", rules), expected)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([{"tensors": "mlp", "value": 1}], "no rule gives `lm_head.weight` a value"),
        ([{"tensors": "mpl", "value": 1}, {"value": 1}], "a rule: `mpl` matches no tensor.*did you mean `mlp`"),
        ([{"layers": "0-9", "value": 1}, {"value": 1}], "a rule: .*names layer 9; the stack has layers 0-4"),
    ],
)
def test_rules_that_do_not_fit_the_model(pair: tuple[Path, Path], tmp_path: Path, weight: Any, message: str) -> None:
    """They are found in the plan."""
    with pytest.raises(PlanError, match=message):
        made(pair, tmp_path / "out", weight)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([], "found an empty list; expected a number, a list of numbers"),
        ([{"value": "x"}], "found `x` for `value`; expected a number"),
        ([{"tensors": "mlp"}], "`value` is missing in a rule"),
        ([{"tensor": "mlp", "value": 1}], "unknown key `tensor` in a rule; expected value, layers, tensors"),
        ([1, True], "found a list; expected a number"),
        ([1, 1e40], r"found `1e\+40` for `sft`"),
    ],
)
def test_what_is_no_number(pair: tuple[Path, Path], tmp_path: Path, weight: Any, message: str) -> None:
    """It is found in the recipe."""
    with pytest.raises(RecipeError, match=message):
        made(pair, tmp_path / "out", weight)


def test_numbers_that_do_not_go_together(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Where weights sum to 0 for a tensor, the plan says for which."""
    recipe = {
        "name": "difference",
        "models": ["base", "sft"],
        "steps": [{"op": "linear", "models": ["base", "sft"], "weights": {"base": -1, "sft": [2, 1, 3]}}],
    }
    with pytest.raises(PlanError, match=r"for `model.layers.2.[a-z_.]*`: the weights \[-1.0, 1.0\] sum to 0"):
        surgery.apply(recipe, pair, tmp_path / "out")


def test_they_read_back(pair: tuple[Path, Path]) -> None:
    """The canonical recipe means the same plan; a number stays a number."""
    step = {"op": "slerp", "models": ["base", "sft"], "t": [{"tensors": "mlp", "value": [0, 1]}, {"value": 0.5}]}
    recipe = {"name": "x", "models": ["base", "sft"], "steps": [step]}
    plan = surgery.plan(recipe, pair)
    assert surgery.plan(plan.recipe.canonical(), pair) == plan
    assert plan.recipe.canonical()["steps"][0]["t"] == [
        {"tensors": ["mlp"], "value": [0.0, 1.0]}, {"value": [0.5]}
    ]  # fmt: skip
    other = {**recipe, "steps": [{**step, "t": [{"tensors": "mlp", "value": [0, 1]}, {"value": 0.25}]}]}
    assert surgery.plan(other, pair) != plan


def test_a_measured_operation_reads_twice(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The plan counts it; two steps in a row, and several workers, give the bytes of one after the other."""
    slerp = {"op": "slerp", "models": ["base", "result"], "t": [0.2, 0.8]}
    half = {"op": "linear", "models": ["base", "result"], "weights": [1, 1]}
    head = {"name": "x", "models": ["base", "sft"]}
    both = surgery.apply({**head, "steps": [half, slerp]}, pair, tmp_path / "both", workers=2)
    assert both.plan.bytes_read == 2 * sum(x.nbytes for model in pair for x in read(model).values())
    first = surgery.apply({**head, "steps": [half]}, pair, tmp_path / "first")
    second = surgery.apply({**head, "steps": [slerp]}, [pair[0], first.out], tmp_path / "second", workers=1)
    assert all(torch.equal(x, read(second.out)[name]) for name, x in read(both.out).items())
