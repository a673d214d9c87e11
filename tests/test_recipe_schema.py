"""The JSON Schema of the recipe format."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from surgery import bundled
from surgery.ops import OPS
from surgery.recipe import load
from surgery.recipe_schema import schema
from surgery.yaml_source import read_yaml
from tests.recipe_strategies import recipes

SCHEMA = schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def data(name: str) -> Any:
    return read_yaml(bundled.read(name), name).data


def test_is_a_schema() -> None:
    """The schema is valid by its own dialect, which it names."""
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", bundled.names())
def test_bundled_recipes_validate(name: str) -> None:
    """Every bundled recipe is valid as it is written, with its `$name`s."""
    assert list(VALIDATOR.iter_errors(data(name))) == []


@pytest.mark.parametrize("name", ["restore-then-average", "three-in-one"])
def test_the_readmes_recipes_validate(name: str) -> None:
    """What the README shows as a recipe is one, for editors and for us; one has values for each model."""
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (shown,) = re.findall(rf"^```yaml\n(name: {name}\n.*?)^```$", text, re.DOTALL | re.MULTILINE)
    recipe = read_yaml(shown, "README.md").data
    assert list(VALIDATOR.iter_errors(recipe)) == []
    assert load(recipe).name == name


@given(recipes)
def test_what_loads_validates(mapping: Any) -> None:
    """Recipes that load are valid."""
    assert list(VALIDATOR.iter_errors(mapping)) == []


MUTATIONS: dict[str, dict[tuple[str | int, ...], object]] = {
    "unknown key": {("ouput",): {}},
    "unknown key of a step": {("steps", 0, "hed"): 1},
    "unknown key of select": {("steps", 0, "select", "layer"): "all"},
    "unknown operation": {("steps", 0, "op"): "restore"},
    "another operation": {("steps", 0, "op"): "truncate_rank"},
    "quantity": {("steps", 0, "head"): "twenty"},
    "quantity below 0": {("steps", 0, "head"): -1},
    "layers": {("steps", 0, "select", "layers"): "frist 25%"},
    "tensors is text": {("steps", 0, "select", "tensors"): "mlp"},
    "parameter's name": {("steps", 0, "head"): "$20"},
    "choice": {("steps", 0, "orthogonalize"): "yes"},
    "reserved role": {("models",): ["base", "result"]},
    "no models": {("models",): []},
    "no steps": {("steps",): []},
    "slices of nothing": {("slices",): []},
    "slices that are nothing": {("slices",): None},
    "slice without roles": {("slices",): [{}]},
    "slice is a range": {("slices",): ["0-9"]},
    "layers of a slice": {("slices",): [{"sft": "some"}]},
    "name": {("name",): "two words"},
    "dtype": {("output",): {"dtype": "int8"}},
    "shard size": {("output",): {"shard_size": "5 gigs"}},
    "parameters": {("parameters",): ["head"]},
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_mutated_recipes_do_not(case: str) -> None:
    """One wrong value makes a valid recipe invalid."""
    recipe = copy.deepcopy(data("restore-top-20pct"))
    for path, value in MUTATIONS[case].items():
        at = recipe
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value
    assert not VALIDATOR.is_valid(recipe)


@pytest.mark.parametrize("key", ["name", "models", "steps"])
def test_required_keys(key: str) -> None:
    """A recipe without name, models or steps is invalid."""
    recipe = data("values-only")
    del recipe[key]
    assert not VALIDATOR.is_valid(recipe)


@pytest.mark.parametrize(
    "step",
    [
        {"op": "linear", "models": ["base", "$other"], "weights": [0.5, "$w"]},
        {"op": "linear", "models": "$models", "weights": {"base": "$w", "sft": "rest"}, "normalize": "$n"},
        {"op": "linear", "models": ["base"], "weights": "$w", "select": "$where"},
        {"op": "reset_layers", "from": "$who", "select": {"layers": ["0-4", 7, "$band"], "tensors": ["$glob"]}},
        {"op": "truncate_rank", "rank": "$rank", "select": {"stack": "$stack", "exclude": "$not"}},
    ],
)
def test_parameters_may_stand_anywhere(step: dict[str, object]) -> None:
    """`$name` is valid as any value of a step or of the output, also in lists and maps."""
    recipe = {"name": "x", "models": ["base", "sft"], "steps": [step], "output": {"dtype": "$d", "shard_size": "$s"}}
    assert list(VALIDATOR.iter_errors(recipe)) == []


@pytest.mark.parametrize("slices", [[{"sft": "0-3"}, {"sft": [0, "2-3"], "base": "first 75%"}], [{"sft": "$part"}]])
@pytest.mark.parametrize("steps", [{}, {"steps": []}])
def test_slices_need_no_steps(slices: list[object], steps: dict[str, object]) -> None:
    """A recipe that only stacks layers is valid, with parameters too."""
    assert list(VALIDATOR.iter_errors({"name": "x", "models": ["base", "sft"], "slices": slices, **steps})) == []


TIES = {"op": "ties", "base": "base", "models": ["sft"]}
RULES: list[tuple[object, bool]] = [
    ([{"tensors": "mlp", "value": 0.5}, {"value": 1}], True),
    ([{"tensors": ["mlp", "$glob"], "layers": "first 50%", "value": [0.1, "$x"]}], True),
    ([{"tensors": "attention", "exclude": "*.bias", "stack": "model", "value": 0.5, "optional": True}], True),
    ({"base": 0.5, "sft": [{"value": 1, "layers": "0-3"}]}, True),
    ([{"tensors": "mlp"}], False),
    ([{"tensor": "mlp", "value": 1}], False),
    ([{"tensors": 3, "value": 1}], False),
    ([{"value": "half"}], False),
    ([{"value": 1, "layers": "frist 3"}], False),
    ([{"value": 1, "optional": "perhaps"}], False),
]


@pytest.mark.parametrize(("density", "valid"), RULES, ids=str)
def test_rules_are_described(density: object, valid: bool) -> None:
    """What differs from tensor to tensor by rules has keys that editors can complete, and wrong ones are invalid."""
    recipe = {"name": "x", "models": ["base", "sft"], "parameters": {"glob": "*", "x": 1, "half": 1}}
    assert VALIDATOR.is_valid({**recipe, "steps": [{**TIES, "density": density}]}) == valid


def test_rules_of_amounts_are_described() -> None:
    """They have percentages and counts, and what loads is valid."""
    for value, valid in (("20%", True), (["0%", "40%"], True), (3, True), ("much", False)):
        step = {"op": "restore_directions", "from": "base", "head": [{"tensors": "mlp", "value": value}]}
        recipe = {"name": "x", "models": ["base", "sft"], "steps": [step]}
        assert VALIDATOR.is_valid(recipe) == valid
        if valid:
            load(recipe)
    for name in ("Rule", "AmountRule"):
        properties = SCHEMA["$defs"][name]["properties"]
        assert set(properties) == {"value", "layers", "tensors", "exclude", "stack", "optional"}
        assert all(each.get("description") for each in properties.values())


def test_every_operation_is_described() -> None:
    """Editors can show what an operation does, and for our own keys what each is for."""
    for op in OPS.values():
        assert SCHEMA["$defs"][op.__name__]["description"]
    for properties in (SCHEMA["properties"], SCHEMA["$defs"]["Output"]["properties"]):
        assert all(value.get("description") for value in properties.values())
