"""Parameters and settings."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.errors import RecipeError
from surgery.ops.linear import Linear
from surgery.recipe import load

MAPPING: dict[str, Any] = {
    "name": "x",
    "models": ["base", "sft"],
    "parameters": {"head": "20%", "layers": "all", "w": [0.5, 0.5], "mlp": "mlp", "dtype": "keep"},
    "steps": [
        {
            "op": "restore_directions",
            "from": "base",
            "head": "$head",
            "select": {"layers": "$layers", "tensors": ["attention", "$mlp"]},
        },
        {"op": "linear", "models": ["base", "result"], "weights": "$w"},
        {"op": "linear", "models": ["base", "result"], "weights": {"base": 0.1, "result": "rest"}},
    ],
    "output": {"dtype": "$dtype"},
}


QUANTITY = "expected a count such as `64`, a percentage from `0%` to `100%`, or `all`"


def refused(settings: dict[str, object]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(MAPPING, settings)
    return [str(fault) for fault in caught.value.faults]


def test_declared_values_are_put_in() -> None:
    """`$name` is replaced as a whole value: scalars and lists, in maps and in lists, in steps and output."""
    recipe = load(MAPPING)
    steps = recipe.canonical()["steps"]
    assert steps[0]["head"] == "20%"
    assert steps[0]["select"]["tensors"] == ["attention", "mlp"]
    assert isinstance(recipe.steps[1], Linear)
    assert recipe.steps[1].weights == (0.5, 0.5)
    assert recipe.output.dtype == "keep"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("head", "40%", "40%"),
        ("head", "64", 64),
        ("head", "'64'", "64"),
        ("layers", "[0-4, 20-27]", ["0-4", "20-27"]),
        ("layers", "first 25%", "first 25%"),
        ("w", "{base: 0.25, result: rest}", {"base": 0.25, "result": "rest"}),
        ("w", [1, 2], [1, 2]),
        ("w", (1, 2), [1, 2]),
        ("head", 7, 7),
    ],
)
def test_settings_override(key: str, text: object, value: object) -> None:
    """Text is read as YAML, other values are taken as they are; `parameters` holds what is in force."""
    recipe = load(MAPPING, {key: text})
    assert recipe.parameters == {**MAPPING["parameters"], key: value}


def test_output_settings_work_on_any_recipe() -> None:
    """`output.KEY` sets a key of the output, declared or not, whatever the recipe says there."""
    assert load(MAPPING, {"output.dtype": "float32"}).output.dtype == "float32"
    recipe = load("wise-ft", {"output.dtype": "bfloat16", "output.shard_size": "1GB", "output.tokenizer": "base"})
    found = {"dtype": "bfloat16", "shard_size": 10**9, "tokenizer": "base"}
    assert {key: value for key, value in recipe.output.model_dump().items() if value} == found


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        ({"haed": "1"}, ["--set haed=1: unknown parameter `haed`; did you mean `head`?"]),
        ({"dtyp": "1"}, ["--set dtyp=1: unknown parameter `dtyp`; did you mean `dtype`?"]),
        (
            {"steps.0": 1},
            [
                (
                    "--set steps.0=1: unknown parameter `steps.0`; what can be set: `head`, `layers`, `w`, `mlp`, "
                    "`dtype`, `output.dtype`, `output.shard_size`, `output.tokenizer`, `output.vocabulary`, "
                    "`output.tokens`, `output.pad_vocabulary_to`, `output.chat_template`"
                )
            ],
        ),
        (
            {"head": "[1"},
            [
                (
                    "--set head=[1: not valid YAML at column 3: while parsing a flow sequence expected ',' or ']', but "
                    "got '<stream end>'; a bracket or a quote is not closed"
                )
            ],
        ),
        ({"head": ".inf"}, ["--set head=.inf: found `.inf`; expected a finite number"]),
        ({"output.dtype": "[.nan]"}, ["--set output.dtype=[.nan]: found `.nan`; expected a finite number"]),
        ({"head": float("nan")}, ["--set head=nan: found `nan`; expected a finite number"]),
        (
            {"head": "much"},
            [f"recipe steps[0].head: found `much`; {QUANTITY} (from `--set head=much`)"],
        ),
        (
            {"head": ""},
            [f"recipe steps[0].head: found nothing; {QUANTITY} (from `--set head=`)"],
        ),
        (
            {"output.dtype": "bf16"},
            [
                (
                    "recipe output.dtype: found `bf16`; expected `keep`, `bfloat16`, `float16`, `float32`; did you "
                    "mean `bfloat16`? (from `--set output.dtype=bf16`)"
                )
            ],
        ),
        (
            {"output.dtpye": "keep"},
            ["recipe output.dtpye: unknown key `dtpye`; did you mean `dtype`? (from `--set output.dtpye=keep`)"],
        ),
        (
            {"hed": 1, "layers": "9-0"},
            [
                "--set hed=1: unknown parameter `hed`; did you mean `head`?",
                (
                    "recipe steps[0].select.layers: found the range `9-0`, which runs backwards; write `0-9` (from "
                    "`--set layers=9-0`)"
                ),
            ],
        ),
    ],
)
def test_wrong_settings(settings: dict[str, object], messages: list[str]) -> None:
    """A wrong setting is quoted as it was given, together with everything else that is wrong."""
    assert refused(settings) == messages


def test_a_setting_without_end() -> None:
    """A list that contains itself is refused as a setting, too."""
    endless: list[object] = []
    endless.append(endless)
    assert refused({"w": endless}) == ["--set w=a list: nested deeper than 32 levels"]


def test_a_setting_in_place_of_a_wrong_declaration() -> None:
    """The declaration stays wrong, and the setting's value is judged where it is used."""
    mapping = {**MAPPING, "parameters": {**MAPPING["parameters"], "head": float("nan")}}
    with pytest.raises(RecipeError) as caught:
        load(mapping, {"head": "much"})
    assert [str(fault) for fault in caught.value.faults] == [
        "recipe parameters.head: found `nan`; expected a finite number",
        f"recipe steps[0].head: found `much`; {QUANTITY} (from `--set head=much`)",
    ]


def test_a_setting_hides_no_unused_parameter() -> None:
    """An overridden output key still counts as the use of its parameter."""
    assert load(MAPPING, {"output.dtype": "float16"}).parameters["dtype"] == "keep"
