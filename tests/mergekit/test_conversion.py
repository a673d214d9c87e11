"""What recipe files of mergekit become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import RecipeError
from surgery.mergekit import Converted, convert, is_merge_file
from surgery.mergekit.methods import METHODS
from surgery.mergekit.names import roles
from surgery.mergekit.text import recipe_text
from surgery.ops import OPS
from surgery.ops.merge import PER_MODEL
from surgery.recipe import load
from surgery.yaml_source import read_yaml
from tests.mergekit.files import FILES, SLERP_OF_MODELS, TASK_ARITHMETIC, TIES


def converted(text: str, origin: str = "merge.yml") -> Converted:
    return convert(read_yaml(text, origin))


def notes(text: str) -> list[str]:
    return [str(note) for note in converted(text).notes]


@pytest.mark.parametrize("kind", FILES)
def test_kinds_of_files(kind: str):
    """Each becomes the steps, the slices and the output that do the same; the models are those of the file."""
    text, expected = FILES[kind]
    found = converted(text)
    assert isinstance(found.data, dict)
    assert {key: found.data[key] for key in found.data if key not in ("name", "summary", "models")} == expected
    assert found.models == {role: f"MODELS/{role}" for role in found.data["models"]}
    assert is_merge_file(read_yaml(text, "").data)
    assert not is_merge_file(found.data)


@pytest.mark.parametrize("kind", FILES)
def test_the_text_reads_back(kind: str, tmp_path: Path):
    """It is YAML with the same data, and a recipe that means the same as the file."""
    text, _ = FILES[kind]
    found = converted(text)
    assert read_yaml(found.text, "").data == found.data
    assert isinstance(found.data, dict)
    (tmp_path / "merge.yml").write_text(text)
    (tmp_path / "recipe.yaml").write_text(found.text)
    recipe = load(tmp_path / "recipe.yaml")
    assert recipe.canonical() == load(tmp_path / "merge.yml").canonical()
    assert not recipe.named


def test_the_text_is_as_people_write_it():
    """A comment for what needs a word, models with their names, one line a key."""
    assert (
        converted(TIES).text
        == """\
# Converted from merge.yml, a recipe file of mergekit.
# merge.yml:21 parameters.int8_mask: no effect here: masks are made piece by piece and need no smaller dtype
# merge.yml:22 dtype: mergekit also computes in float16; here that is done in float32, and rounded once
name: merge
summary: "ties of base, sft, math, code, as mergekit's merge.yml says"
models:
  - base  # MODELS/base
  - sft   # MODELS/sft
  - math  # MODELS/math
  - code  # MODELS/code
start: base  # the output gets its config and tokenizer, and is divided into files like it
steps:
  - op: ties
    base: base
    models: [sft, math, code]
    weights:
      sft: 1.0
      math: [0, 0.3, 0.7, 1]
      code:
        - {tensors: "*mlp*", optional: true, value: 0.5}
        - {value: 0}
    density: {sft: [1, 0.7, 0.1], math: 0.5, code: 0.33}
    normalize: true
output:
  dtype: float16
"""
    )


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | words
scalars |= st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=3))


@given(st.dictionaries(words, plain, max_size=4), words)
def test_any_data_reads_back(data: dict[str, Any], comment: str):
    """The text is YAML of the data, comments or not."""
    beside = {(key,): comment for key in data}
    assert read_yaml(recipe_text(data, [comment], beside), "").data == (data or None)


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_operations(name: str):
    """Every parameter is a field of the operation of that name, with mergekit's default."""
    fields = OPS[name].model_fields
    by_key = {field.alias or key: field for key, field in fields.items()}
    for parameter in METHODS[name].parameters:
        if parameter.name.startswith("nuslerp_"):
            continue
        assert parameter.field in by_key
        if not parameter.needed:
            default = by_key[parameter.field].default
            assert default == parameter.default, parameter
        if parameter.scope != "shared" and METHODS[name].most != 1:
            assert parameter.field in PER_MODEL


def test_settings_that_do_not_reach_everything():
    """What the nearer one leaves goes to the next, and what all leave to the default; mergekit looks in this order."""
    text = TIES.replace("density: 0.33", "density: {filter: mlp, value: 0.2}").replace(
        "  normalize: true", "  density: [{filter: norm, value: 0.9}]"
    )
    found = converted(text).data
    assert isinstance(found, dict)
    assert found["steps"][0]["density"]["code"] == [
        {"tensors": "*mlp*", "optional": True, "value": 0.2},
        {"tensors": "*norm*", "optional": True, "value": 0.9},
        {"value": 1.0},
    ]


def test_without_a_default_the_rules_end():
    """As in mergekit, a tensor without a weight is a fault; the plan finds it."""
    found = converted(TASK_ARITHMETIC.replace("weight: 0.4", "weight: {filter: mlp, value: 1}")).data
    assert isinstance(found, dict)
    assert found["steps"][0]["weights"] == {"sft": [{"tensors": "*mlp*", "optional": True, "value": 1}], "math": -0.2}


def test_values_as_yaml_1_1_and_pydantic_read_them():
    """Numbers as text, and words for truth."""
    text = TIES.replace("density: 0.5", "density: '5e-1'").replace("normalize: true", "normalize: off")
    found = converted(text).data
    assert isinstance(found, dict)
    assert found["steps"][0]["density"]["math"] == 0.5
    assert found["steps"][0]["normalize"] is False


def test_filters_are_parts_of_names():
    """Signs that mean something in a glob mean themselves; `*` alone is for all."""
    text = SLERP_OF_MODELS.replace("filter: self_attn", "filter: 'a[0]*?'").replace("- filter: mlp", "- filter: '*'")
    found = converted(text).data
    assert isinstance(found, dict)
    assert found["steps"][0]["t"] == [
        {"tensors": "*a[[]0][*][?]*", "optional": True, "value": [0, 0.5, 0.3, 0.7, 1]},
        {"value": [1, 0.5, 0.7, 0.3, 0]},
    ]


def test_a_gradient_for_all_models_is_a_map():
    """A list would be one number a model."""
    found = converted(TASK_ARITHMETIC.replace("weight: 0.4", "weight: [0, 1, 2]").replace("{weight: -0.2}", "{}")).data
    assert isinstance(found, dict)
    assert found["steps"][0]["weights"] == {"sft": [0, 1, 2], "math": [0, 1, 2]}
    ram = "models: [{model: a}, {model: c}]\nbase_model: b\nmerge_method: ram\nparameters: {epsilon: [0, 1]}\n"
    found = converted(ram).data
    assert isinstance(found, dict)
    assert found["steps"][0]["epsilon"] == {"a": [0, 1], "c": [0, 1]}


def test_the_base_is_merged_by_methods_without_one():
    """`linear` and `karcher` take it for a model like the others, at the end where it is not listed."""
    text = "models: [{model: a}, {model: c}]\nbase_model: b\nmerge_method: linear\nparameters: {weight: 1}\n"
    found = converted(text).data
    assert isinstance(found, dict)
    assert found["models"] == ["b", "a", "c"]
    assert found["start"] == "b"
    assert found["steps"] == [{"op": "linear", "models": ["a", "c", "b"], "weights": 1}]


@pytest.mark.parametrize(
    ("switches", "expected"),
    [("", {}), ("nuslerp_row_wise: true", {}), ("nuslerp_flatten: false", {"angles": "rows"})],
)
def test_switches_of_nuslerp(switches: str, expected: dict[str, str]):
    """Flattening counts for more than rows; what mergekit calls row-wise are columns."""
    text = "models: [{model: a}, {model: c}]\nmerge_method: nuslerp\nparameters: {weight: 1"
    found = converted(f"{text}, {switches}}}" if switches else f"{text}}}").data
    assert isinstance(found, dict)
    assert found["steps"] == [{"op": "nuslerp", "models": ["a", "c"], "weights": 1, **expected}]


STACK = """\
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [0, 2]}
  - sources:
      - {model: a, layer_range: [1, 4]}
      - {model: b, layer_range: [1, 4]}
base_model: a
merge_method: slerp
parameters: {t: 0.5}
"""
TAIL = {"tensors": ["all"], "exclude": ["embedding", "*.[0-9]*"]}


def steps(text: str) -> list[dict[str, Any]]:
    data = converted(text).data
    assert isinstance(data, dict)
    return list(data.get("steps", []))


def test_slices_that_are_made_in_one_way_have_one_step():
    """Without a selection: it holds outside of the layers, too."""
    assert converted(STACK).data["slices"] == [{"a": "0-1", "b": "0-1"}, {"a": "1-3", "b": "1-3"}]  # type: ignore[index]
    assert steps(STACK) == [{"op": "slerp", "models": ["a", "b"], "t": 0.5}]


def test_slices_with_settings_of_their_own():
    """Each has its step, and so has what lies before and after the layers; those that are alike share one."""
    text = STACK.replace("base_model", "    parameters: {t: [0, 1, 0.5]}\nbase_model")
    head = {"op": "slerp", "models": ["a", "b"]}
    assert steps(text) == [
        {**head, "t": 0.5, "select": {"tensors": ["embedding"]}},
        {**head, "t": 0.5, "select": {"layers": ["0-1"]}},
        {
            **head,
            "t": [{"layers": 2, "value": 0.0}, {"layers": 3, "value": 1.0}, {"layers": 4, "value": 0.5}],
            "select": {"layers": ["2-4"]},
        },
        {**head, "t": 0, "select": TAIL},
    ]


def test_passing_through():
    """Layers are where the slices put them; steps are for scales, and for what the last model has after them."""
    one = "  - sources: [{model: a, layer_range: [0, 4]}]\n"
    assert "steps" not in converted(f"slices:\n{one}{one}merge_method: passthrough\n").data  # type: ignore[operator]
    other = "  - sources: [{model: b, layer_range: [2, 4], parameters: {scale: [{filter: o_proj, value: 0.5}]}}]\n"
    rules = [{"tensors": "*o_proj*", "optional": True, "value": 0.5}, {"value": 1.0}]
    scaled = {"op": "passthrough", "models": ["b"], "scale": rules}
    assert steps(f"slices:\n{one}{other}{one}{other}merge_method: passthrough\n") == [
        {**scaled, "select": {"layers": ["4-5", "10-11"]}},
        {**scaled, "select": TAIL},
    ]
    last = "  - sources: [{model: b, layer_range: [2, 4]}]\n"
    assert steps(f"slices:\n{one}{last}merge_method: passthrough\n") == [
        {"op": "reset_layers", "from": "b", "select": TAIL}
    ]
    assert steps(f"slices:\n{one}merge_method: passthrough\nbase_model: c\n") == [
        {"op": "passthrough", "models": ["a"]}
    ]


def test_notes():
    """What has no effect, and what differs, is told with its line; nothing is dropped in silence."""
    text = """\
models:
  - model: base
    parameters: {weight: 1}
  - model: sft
    parameters: {density: 0.5, weight: 0.5, normalize: true}
merge_method: dare_linear
base_model: base
parameters: {int8_mask: true, t: 0.5, rescale: true}
dtype: bfloat16
tokenizer_source: base
"""
    assert notes(text) == [
        "merge.yml:3 models[0].parameters.weight: no effect for the base model, in mergekit either",
        "merge.yml:5 models[1].parameters.normalize: no effect for a single model, in mergekit either",
        (
            "merge.yml:6 merge_method: mergekit's random masks differ from run to run; here they follow from `seed`, "
            "a field of the operation"
        ),
        "merge.yml:8 parameters.int8_mask: no effect here: masks are made piece by piece and need no smaller dtype",
        "merge.yml:8 parameters.t: no effect with `dare_linear`, in mergekit either",
        "merge.yml:9 dtype: mergekit also computes in bfloat16; here that is done in float32, and rounded once",
        "merge.yml:10 tokenizer_source: rows beyond the tokens (padding) stay as in `base`, mergekit removes them",
    ]
    assert notes(SLERP_OF_MODELS) == []


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["mistralai/Mistral-7B-v0.1", "./out/sft/"], ["Mistral-7B-v0-1", "sft"]),
        (["a/llama@main", "b/llama"], ["a-llama", "b-llama"]),
        (["llama@one", "llama@two"], ["llama", "llama-2"]),
        (["sft/checkpoint-100", "rl/checkpoint-100", "base"], ["sft-checkpoint-100", "rl-checkpoint-100", "base"]),
        (["7B", "/", "result", "a b"], ["model-7B", "model", "result-2", "a-b"]),
        (["x" * 50], ["x" * 40]),
    ],
)
def test_roles(models: list[str], expected: list[str]):
    """Names without what a role's name cannot have; the parts before, or numbers, tell twins apart."""
    assert roles(models) == expected


@given(st.lists(st.text(max_size=50), unique=True, min_size=1, max_size=6))
def test_roles_are_roles(models: list[str]):
    """Whatever the names: as many, distinct, and ones that a recipe accepts."""
    found = roles(models)
    steps = [{"op": "linear", "models": found}]
    assert load({"name": "x", "models": found, "steps": steps}).models == tuple(found)


@pytest.mark.parametrize("path", ["/home/me/secret/sft", "~/secret/sft", "D:/secret/sft", "C:\\\\secret\\\\sft"])
def test_of_absolute_paths_the_text_has_the_last_part(path: str):
    """It goes into the output's card; the models that are opened have it whole."""
    found = converted(
        f'models: [{{model: "{path}", parameters: {{weight: 1}}}}]\nmerge_method: linear\n', "/secret/m.yml"
    )
    assert "secret" not in found.text
    assert "# sft\n" in found.text
    assert [*found.models.values()] == [path.replace("\\\\", "\\")]


def test_a_model_may_be_spelt_out():
    """As mergekit's own output does it."""
    text = "models: [{model: {model: {path: org/a, revision: main}}}, {model: {model: org/c}}]\nmerge_method: karcher\n"
    assert converted(text).models == {"a": "org/a@main", "c": "org/c"}


def test_a_word_is_a_path_or_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """mergekit looks on the hub for what is no path here, such as `gpt2`; to `surgery` a revision says so."""
    (tmp_path / "tuned").mkdir()
    monkeypatch.chdir(tmp_path)
    names = ["gpt2", "tuned", "gpt2+tuned", "tuned+gpt2-lora", "gpt2@v1", "org/gpt2", "./gpt2", "merged.safetensors"]
    data = {"models": [{"model": name} for name in names], "merge_method": "karcher"}
    assert [*load(data).named.values()] == ["gpt2@main", "tuned", "gpt2@main+tuned", "tuned+gpt2-lora@main", *names[4:]]


def test_the_files_name_is_the_recipes(tmp_path: Path):
    """Or what the file calls itself; in Python there is neither."""
    assert converted(TIES, str(tmp_path / "my merge (2).yml")).data["name"] == "my-merge-2"  # type: ignore[index]
    assert converted(f"name: Mine 1\n{TIES}").data["name"] == "Mine-1"  # type: ignore[index]
    data = {"models": [{"model": "./a", "parameters": {"weight": 1}}], "merge_method": "linear"}
    recipe = load(data)
    assert (recipe.name, dict(recipe.named)) == ("recipe", {"a": "./a"})


def test_what_our_operations_refuse_has_the_files_line():
    """The path is that of the file, too."""
    with pytest.raises(RecipeError) as caught:
        load(
            {
                "merge_method": "slerp",
                "models": [{"model": "a"}, {"model": "b"}],
                "base_model": "a",
                "parameters": {"t": 2},
            }
        )
    assert str(caught.value) == "recipe parameters.t: found `2.0`; expected a number between 0 and 1"
