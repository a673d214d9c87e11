from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.errors import PlanError, RecipeError
from surgery.quantity import Quantity
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
        ([1, 1e40], r"found `1e\+40`; expected at most 1e\+12 in size"),
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


def test_shares_that_do_not_exist(pair: tuple[Path, Path]) -> None:
    """Where graded weights sum to 0 in some layer, merges that divide by the sum say in which."""
    for op in ("nuslerp", "multislerp", "karcher"):
        step = {"op": op, "models": ["base", "sft"], "weights": [[1, 0, 1], [1, 0, 1]]}
        recipe = {"name": "x", "models": ["base", "sft"], "steps": [step]}
        with pytest.raises(PlanError, match=r"for `model.layers.2.[a-z_.]*`: the weights \[0.0, 0.0\] sum to 0"):
            surgery.plan(recipe, pair)


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


def test_a_measured_operation_after_another(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Two steps in a row, and several workers, give the bytes of one after the other; one piece is read once."""
    slerp = {"op": "slerp", "models": ["base", "result"], "t": [0.2, 0.8]}
    half = {"op": "linear", "models": ["base", "result"], "weights": [1, 1]}
    head = {"name": "x", "models": ["base", "sft"]}
    both = surgery.apply({**head, "steps": [half, slerp]}, pair, tmp_path / "both", workers=2)
    assert both.plan.bytes_read == sum(x.nbytes for model in pair for x in read(model).values())
    first = surgery.apply({**head, "steps": [half]}, pair, tmp_path / "first")
    second = surgery.apply({**head, "steps": [slerp]}, [pair[0], first.out], tmp_path / "second", workers=1)
    assert all(torch.equal(x, read(second.out)[name]) for name, x in read(both.out).items())


def restored(pair: tuple[Path, Path], head: Any, **more: Any) -> dict[str, Quantity]:
    """The head with which each matrix is restored."""
    step = {"op": "restore_directions", "from": "base", "head": head, **more}
    plan = surgery.plan({"name": "x", "models": ["base", "sft"], "steps": [step]}, pair)
    return {tensor.slot.name: op.head for tensor in plan.tensors for op in tensor.ops}


def test_percentages_are_interpolated_exactly(pair: tuple[Path, Path]) -> None:
    """5 % to 20 % in five layers: 8.75 %, 12.5 % and 16.25 % between; `all` is 100 %."""
    heads = restored(pair, ["5%", "20%"])
    assert len(heads) == 7 * LAYERS
    for name, head in heads.items():
        layer = int(name.split(".")[2])
        assert head == Quantity(percent=5 + layer * Fraction(15, LAYERS - 1))
    last = restored(pair, ["0.1%", "0%", "all"])
    assert [last[f"model.layers.{i}.mlp.up_proj.weight"] for i in (1, 3)] == [
        Quantity(percent=Fraction(1, 20)),
        Quantity(percent=Fraction(50)),
    ]


def test_counts_are_rounded(pair: tuple[Path, Path]) -> None:
    """1 to 4 in five layers: 1.75, 2.5 and 3.25 between, half up."""
    heads = restored(pair, [1, 4])
    assert [heads[f"model.layers.{i}.mlp.up_proj.weight"].count for i in range(LAYERS)] == [1, 2, 3, 3, 4]


def test_amounts_by_rules(pair: tuple[Path, Path]) -> None:
    """Counts for some tensors, percentages for others, lists among them; a plain amount is the same for all."""
    heads = restored(pair, [{"tensors": "mlp", "value": 3}, {"value": ["10%", "all"]}])
    assert {head for name, head in heads.items() if "mlp" in name} == {Quantity(count=3)}
    assert heads["model.layers.4.self_attn.q_proj.weight"] == Quantity.parse("all")
    assert set(restored(pair, "20%").values()) == {Quantity.parse("20%")}


def test_amounts_read_back(pair: tuple[Path, Path]) -> None:
    """The canonical recipe means the same plan, and one without grades is what it was before there were any."""
    rules = [{"tensors": ["mlp"], "value": ["5%", "20%"]}, {"value": 3}]
    for head, canonical in (
        (rules, [{"tensors": ["mlp"], "value": ["5%", "20%"]}, {"value": ["3"]}]),
        (["5%", "all"], ["5%", "all"]),
        ("20%", "20%"),
        (64, "64"),
    ):
        step = {"op": "restore_directions", "from": "base", "head": head}
        plan = surgery.plan({"name": "x", "models": ["base", "sft"], "steps": [step]}, pair)
        assert plan.recipe.canonical()["steps"][0]["head"] == canonical
        assert surgery.plan(plan.recipe.canonical(), pair) == plan


def test_nothing_is_restored_where_the_head_is_0(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A head that grows from 0 leaves the first layer as it is; the others are those of the same constant head."""
    head = {"name": "x", "models": ["base", "sft"]}
    step = {"op": "restore_directions", "from": "base"}
    surgery.apply({**head, "steps": [{**step, "head": ["0%", "40%"]}]}, pair, tmp_path / "graded")
    surgery.apply({**head, "steps": [{**step, "head": "20%"}]}, pair, tmp_path / "constant")
    graded, constant, sft = read(tmp_path / "graded"), read(tmp_path / "constant"), read(pair[1])
    for name, tensor in graded.items():
        if "layers.0." in name:
            assert torch.equal(tensor, sft[name])
        if "layers.2." in name:
            assert torch.equal(tensor, constant[name])


def test_ranks_may_be_graded(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Of truncate_rank, too."""
    step = {"op": "truncate_rank", "rank": [2, 6]}
    surgery.apply({"name": "x", "models": ["sft"], "steps": [step]}, [pair[1]], tmp_path / "out")
    out = read(tmp_path / "out")
    ranks = [
        int(torch.linalg.matrix_rank(out[f"model.layers.{i}.mlp.up_proj.weight"], rtol=1e-4)) for i in range(LAYERS)
    ]
    assert ranks == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (["5%", 64], "found counts and percentages together: `5%`, `64`; between them nothing is defined"),
        ([{"value": [0, "20%"]}], "found counts and percentages together: `0`, `20%`"),
        ([], "found an empty list; expected a count, a percentage, a list of either"),
        ([5, True], "found a list; expected a count, a percentage"),
        (["5%", "20"], "found counts and percentages together"),
        (["5%", "x"], "found `x`; expected a count such as `64`, a percentage"),
        (0.2, "found `0.2`; expected a count such as `64`, a percentage"),
        ([{"tensors": "mlp"}], "`value` is missing in a rule"),
        (["0%", "0%"], "`head` and `tail` are both 0"),
    ],
)
def test_what_is_no_amount(pair: tuple[Path, Path], head: Any, message: str) -> None:
    """It is found in the recipe."""
    with pytest.raises(RecipeError, match=message):
        restored(pair, head)


def test_a_rank_of_0_is_refused_in_any_layer(pair: tuple[Path, Path]) -> None:
    """It would erase a matrix."""
    step = {"op": "truncate_rank", "rank": [0, 6]}
    with pytest.raises(RecipeError, match="found 0, which would erase the matrices"):
        surgery.plan({"name": "x", "models": ["sft"], "steps": [step]}, [pair[1]])


def test_an_optional_rule_may_select_nothing(pair: tuple[Path, Path]) -> None:
    """It is remarked upon, and the next one counts; where the step itself selects nothing, that alone is told."""
    rules = [{"tensors": "*none*", "optional": True, "value": 1}, {"value": 0.5}]
    step = {"op": "slerp", "models": ["base", "sft"], "t": rules}
    recipe = {"name": "x", "models": ["base", "sft"], "steps": [step]}
    (remark,) = surgery.plan(recipe, pair).remarks
    assert remark.startswith("steps[0]: a rule for `*none*` selects no tensor; the next one counts for: ")
    nothing = {**recipe, "steps": [{**step, "select": {"tensors": ["*nobody*"]}}]}
    with pytest.raises(PlanError, match=r"select: `\*nobody\*` matches no tensor") as error:
        surgery.plan(nothing, pair)
    assert len(error.value.faults) == 1
