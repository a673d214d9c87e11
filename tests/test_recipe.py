"""Loading recipes: what they become, and everything that can be wrong with one."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery import bundled
from surgery.errors import Fault, RecipeError
from surgery.layers import LayerRange
from surgery.ops.linear import Linear
from surgery.ops.restore_directions import RestoreDirections
from surgery.quantity import Quantity
from surgery.recipe import load
from surgery.wording import quoted
from tests.recipe_strategies import recipes

GOOD = """\
name: example
summary: A recipe.
models: [base, sft]
parameters: {head: 20%}
steps:
  - op: restore_directions
    from: base
    head: $head
    select: {layers: first 25%, tensors: [attention, mlp]}
output: {dtype: bfloat16, shard_size: 5GB}
"""


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_whole_recipe(tmp_path: Path) -> None:
    """Every part of the text arrives, parameters put in and defaults filled."""
    recipe = load(write(tmp_path, GOOD))
    assert (recipe.name, recipe.summary, recipe.models, recipe.start) == (
        "example",
        "A recipe.",
        ("base", "sft"),
        "sft",
    )
    assert recipe.parameters == {"head": "20%"}
    (step,) = recipe.steps
    assert isinstance(step, RestoreDirections)
    assert step.reads == ("base",)
    assert step.head == Quantity.parse("20%")
    assert step.select.layers == LayerRange.parse("first 25%")
    assert (recipe.output.dtype, recipe.output.shard_size, recipe.output.tokenizer) == ("bfloat16", 5 * 10**9, None)
    assert recipe.text == GOOD


def test_defaults() -> None:
    """`start` is the last role; the output is stored as `start` is."""
    recipe = load({"name": "x", "models": ["base", "sft"], "steps": [{"op": "restore_values", "from": "base"}]})
    assert recipe.start == "sft"
    assert {key: value for key, value in recipe.output.model_dump().items() if value} == {
        "dtype": "keep",
        "shard_size": "keep",
    }
    assert recipe.parameters == {}


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's place has the file's path as given and the line; a mapping's has no line."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD)
    recipe = load("recipe.yaml")
    assert recipe.origin == "recipe.yaml"
    assert recipe.where(0) == "recipe.yaml:6 steps[0]"
    assert load(recipe.canonical()).where(0) == "recipe steps[0]"


def test_loading_needs_no_torch() -> None:
    """Reading a recipe imports neither torch nor transformers."""
    code = (
        "import sys; from surgery.recipe import load; load('wise-ft'); from surgery.recipe_schema import "
        "schema; schema();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_recipe_survives_pickling(tmp_path: Path) -> None:
    """A recipe sent to another process still knows its text and places."""
    recipe = load(write(tmp_path, GOOD), {"head": "3"})
    again = pickle.loads(pickle.dumps(recipe))
    assert again == recipe
    assert (again.text, again.where(0)) == (recipe.text, recipe.where(0))


# --- where a recipe comes from -----------------------------------------------------------------------------------


def test_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is a bundled recipe; a directory of that name, an earlier output say, does not hide it."""
    monkeypatch.chdir(tmp_path)
    assert load("wise-ft").text == bundled.read("wise-ft")
    (tmp_path / "wise-ft").mkdir()
    assert load("wise-ft").origin == "wise-ft.yaml"


def test_a_file_goes_before_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has the name of a bundled recipe is what is meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wise-ft").write_text(GOOD)
    assert load("wise-ft").name == "example"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("wise-fit", "found neither a file nor a bundled recipe `wise-fit`; did you mean `wise-ft`?"),
        ("mine.yml", "found neither a file nor a bundled recipe `mine.yml`; did you mean `mine.yaml`?"),
        (Path("wise-ft"), "found neither a file nor a bundled recipe `wise-ft`; did you mean `wise-ft`?"),
        (
            "some/where",
            f"found neither a file nor a bundled recipe `some/where`; bundled recipes: {quoted(bundled.names())}",
        ),
        (".", "the recipe `.` cannot be read: Is a directory; expected a file or a bundled recipe's name"),
        (
            "a\0b",
            "the recipe `a\\x00b` cannot be read: embedded null byte; expected a file or a bundled recipe's name",
        ),
    ],
)
def test_no_such_recipe(source: str | Path, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that cannot be read is named, with the nearest file or bundled recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        load(source)
    assert str(caught.value) == message


def test_a_recipe_again(tmp_path: Path) -> None:
    """A loaded recipe is returned as it is; with settings it is resolved anew, earlier settings kept."""
    recipe = load(write(tmp_path, GOOD), {"head": "30%"})
    assert load(recipe) is recipe
    changed = load(recipe, {"output.dtype": "float32"})
    assert changed.parameters == {"head": "30%"}
    assert changed.output.dtype == "float32"
    assert recipe.output.dtype == "bfloat16"


# --- canonical form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bundled.names())
def test_canonical_form_of_bundled_recipes(name: str) -> None:
    """The canonical form is JSON data that loads to the same canonical form."""
    canonical = load(name).canonical()
    assert load(json.loads(json.dumps(canonical))).canonical() == canonical


def test_what_is_not_canonical(tmp_path: Path) -> None:
    """Comments, prose, the layout of the text, the file's name and how a value was given do not matter."""
    one = load(write(tmp_path, GOOD)).canonical()
    text = GOOD.replace("A recipe.", "Other prose.").replace("$head", "20.0 %").replace("parameters: {head: 20%}\n", "")
    (tmp_path / "other.yaml").write_text("# comment\n" + text)
    assert load(tmp_path / "other.yaml").canonical() == one
    assert load(tmp_path / "recipe.yaml", {"head": "21%"}).canonical() != one


@given(recipes)
def test_round_trips(mapping: dict[str, Any]) -> None:
    """A recipe from a mapping equals those from its canonical form, from its text, and from JSON."""
    recipe = load(mapping)
    canonical = recipe.canonical()
    assert load(canonical).canonical() == canonical
    assert json.loads(json.dumps(canonical)) == canonical
    assert load(canonical).steps == recipe.steps
    assert load(canonical).output == recipe.output


@given(mapping=recipes)
def test_text_round_trips(mapping: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The YAML made from a mapping loads to the same recipe."""
    recipe = load(mapping)
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(recipe.text, "utf-8")
    assert load(path).canonical() == recipe.canonical()
    assert load(path).summary == recipe.summary


def test_linear_weights_by_role() -> None:
    """Weights given by role are kept in the order of `models`, so both spellings are one recipe."""
    step = {"op": "linear", "models": ["base", "sft"]}
    by_role = load({"name": "x", "models": ["base", "sft"], "steps": [{**step, "weights": {"sft": 0.7, "base": 0.3}}]})
    as_list = load({"name": "x", "models": ["base", "sft"], "steps": [{**step, "weights": [0.3, 0.7]}]})
    assert isinstance(by_role.steps[0], Linear)
    assert by_role.canonical() == as_list.canonical()


def test_faults_of_a_mapping() -> None:
    """A recipe from Python gets the same messages, without lines."""
    mapping = {
        "name": "x",
        "models": ["base", "sft"],
        "steps": [{"op": "linear", "models": ["base", "sft"], "normalise": 1}],
    }
    with pytest.raises(RecipeError) as caught:
        load(mapping)
    assert str(caught.value) == "recipe steps[0].normalise: unknown key `normalise`; did you mean `normalize`?"


def refusals(mapping: dict[str, Any], settings: dict[str, object]) -> tuple[Fault, ...]:
    try:
        load(mapping, settings)
    except RecipeError as error:
        return error.faults
    return ()


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["base", "$head", "linear", "all", "20%", "keep"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["op", "from", "head", "models", "weights", "select", "layers", "tensors", "dtype", "a"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["name", "summary", "models", "start", "parameters", "steps", "output", "a"]), json_like
    ),
    st.dictionaries(st.sampled_from(["head", "a", "output.dtype", "output.a"]), json_like | st.text(max_size=8)),
)
def test_any_data_is_loaded_or_refused(mapping: dict[str, Any], settings: dict[str, object]) -> None:
    """Whatever a recipe and its settings hold, the outcome is a recipe or a RecipeError without foreign words."""
    for fault in refusals(mapping, settings):
        assert not any(word in str(fault) for word in ("pydantic", "http", "Input should", "literal[", "function-"))


@given(
    op=st.sampled_from(["restore_directions", "linear", "reset_layers", "truncate_rank", "swap_directions"]),
    keys=st.dictionaries(
        st.sampled_from(["from", "head", "tail", "models", "weights", "normalize", "select", "rank", "orthogonalize"]),
        json_like,
        max_size=5,
    ),
)
def test_any_step_is_loaded_or_refused(op: str, keys: dict[str, Any]) -> None:
    """Whatever an operation's parameters hold, the outcome is a recipe or faults inside that step or of its roles."""
    mapping = {"name": "x", "models": ["base", "sft"], "start": "sft", "steps": [{"op": op, **keys}]}
    for fault in refusals(mapping, {}):
        assert fault.where.startswith(("recipe steps[0]", "recipe models[0]"))
