"""Keys of mergekit's files beside the models: anchors, modules, seeds, dtypes, and what has no effect."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.errors import RecipeError
from surgery.mergekit import Converted, convert
from surgery.source import MAX_NODES
from surgery.yaml_source import read_yaml

LINEAR = """\
models:
  - {model: one, parameters: {weight: 0.3}}
  - {model: two, parameters: {weight: 0.7}}
merge_method: linear
"""


def converted(text: str) -> Converted:
    """The recipe made from a file called merge.yml."""
    return convert(read_yaml(text, "merge.yml"))


def data(text: str) -> dict[str, Any]:
    """Its data."""
    found = converted(text).data
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "text",
    [
        LINEAR.replace("weight: 0.3", "weight: &w 0.3").replace("0.7", "0.7, normalize: 1"),
        LINEAR.replace("{weight: 0.3}", "&p {weight: 0.3}").replace("{weight: 0.7}", "{<<: *p, weight: 0.7}"),
        LINEAR.replace("{weight: 0.3}", "&p {weight: 0.3}").replace("{weight: 0.7}", "{weight: 0.7, <<: *p}"),
        LINEAR.replace("0.3", "!!float 0.3").replace("linear", "!!str linear"),
        LINEAR.replace("one", "&m one") + "base_model: *m\n",
    ],
    ids=["anchor", "merged before", "merged after", "tags", "alias"],
)
def test_anchors_and_tags(text: str) -> None:
    """What is used again means what was written; keys of a map count for more than merged ones, wherever they stand."""
    assert data(text)["steps"] == data(LINEAR)["steps"]


def test_of_merged_maps_the_first_counts() -> None:
    """In a list of maps; all others add their keys."""
    text = LINEAR.replace("{weight: 0.3}", "&p {weight: 0.3}").replace("{weight: 0.7}", "&q {weight: 0.7, t: 1}")
    text = text.replace("merge_method", "  - {model: three, parameters: {<<: [*p, *q]}}\nmerge_method")
    made = converted(text)
    assert made.data["steps"][0]["weights"] == {"one": 0.3, "two": 0.7, "three": 0.3}
    assert [str(note).partition(": ")[0] for note in made.notes if "three" in str(note) or "[2]" in str(note)] == [
        "merge.yml:4 models[2].parameters.t"
    ]


def test_values_that_are_used_again_count_again() -> None:
    """A file that doubles its size by each line is refused, and not written out."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    with pytest.raises(RecipeError, match=f"more than {MAX_NODES:,} values"):
        converted("\n".join(["merge_method: linear", *lines, ""]))


@pytest.mark.parametrize("within", [{}, {"weight": 0.5}])
def test_the_one_module(within: dict[str, float]) -> None:
    """Its models are those of the file; its parameters count for more than the file's, and less than a model's."""
    text = f"""\
modules:
  default:
    models:
      - {{model: one, parameters: {{weight: 0.3}}}}
      - {{model: two}}
    parameters: {within}
merge_method: linear
parameters: {{weight: 0.9}}
"""
    (step,) = data(text)["steps"]
    assert step["weights"] == {"one": 0.3, "two": within.get("weight", 0.9)}
    assert str(converted(text + "dtype: bfloat16\n").where(("steps", 0, "weights"))).startswith(
        "merge.yml:4 modules.default.models[0].parameters.weight"
    )


def test_slices_of_the_one_module() -> None:
    """As at the top."""
    inner = (
        "slices:\n  - sources: [{model: one, layer_range: [0, 2]}]\n  - sources: [{model: two, layer_range: [1, 3]}]\n"
    )
    nested = "".join(f"    {line}\n" for line in inner.splitlines())
    end = "merge_method: passthrough\n"
    assert data(f"modules:\n  default:\n{nested}{end}")["slices"] == data(inner + end)["slices"]


def test_modules_that_are_merged_alike() -> None:
    """Are the whole."""
    same = "{models: [{model: one}, {model: two}], parameters: {weight: 1}}"
    made = data(f"modules:\n  text: {same}\n  vision: {same}\nmerge_method: linear\n")
    assert made["steps"] == [{"op": "linear", "models": ["one", "two"], "weights": 1}]


def test_a_seed() -> None:
    """Of a file is the operation's, where that chooses at random; told either way."""
    dare = LINEAR.replace("linear", "dare_ties") + "base_model: base\nrandom_seed: 7\n"
    assert data(dare)["steps"][0]["seed"] == 7
    assert [str(note) for note in converted(dare).notes] == [
        (
            "merge.yml:6 random_seed: mergekit ignores it in a file, its option is `--random-seed`; here it is the "
            "`seed` of the operation, and chooses other entries than there"
        )
    ]
    plain = converted(LINEAR + "random_seed: 7\n")
    assert "seed" not in plain.data["steps"][0]
    assert [str(note) for note in plain.notes] == [
        "merge.yml:5 random_seed: no effect: `linear` chooses nothing at random"
    ]


def test_what_has_no_effect_in_mergekit_either() -> None:
    """Layers among models, and the weight of residuals: told, and nothing else than without them."""
    text = LINEAR.replace("one,", "one, layer_range: [0, 2],")
    assert data(text) == data(LINEAR)
    (note,) = converted(text).notes
    assert str(note) == "merge.yml:2 models[0].layer_range: no effect, in mergekit either: it belongs into `slices`"
    slices = "slices:\n  - sources: [{model: one, layer_range: [0, 2]}]\n    residual_weight: 0.5\n"
    (note,) = converted(f"{slices}merge_method: passthrough\n").notes
    assert str(note) == "merge.yml:3 slices[0].residual_weight: no effect, in mergekit either"


def test_parameters_of_mergekits_search() -> None:
    """`smooth` and `allow_negative_weights`, which people copy from files of mergekit-evolve: told, and left out."""
    found = converted(LINEAR + "parameters: {smooth: false, allow_negative_weights: false}\n")
    assert found.data["steps"] == data(LINEAR)["steps"]
    assert [str(note) for note in found.notes] == [
        f"merge.yml:5 parameters.{name}: no effect, in mergekit 0.1.5 either"
        for name in ("smooth", "allow_negative_weights")
    ]


@pytest.mark.parametrize(
    "method",
    [
        "task_arithmetic",
        "ties",
        "dare_linear",
        "dare_ties",
        "breadcrumbs",
        "breadcrumbs_ties",
        "della",
        "della_linear",
        "sce",
        "ram",
        "ramplus_tl",
    ],
)
def test_the_base_alone_is_the_result(method: str) -> None:
    """Task vectors of no model leave the base; so people merge an adapter into its model."""
    made = data(f"models: [{{model: org/a+org/lora}}]\nbase_model: org/a+org/lora\nmerge_method: {method}\n")
    assert made["steps"] == [{"op": "passthrough", "models": ["lora"]}]


def test_arithmetic_in_float64() -> None:
    """The output's dtype is the other one; that the arithmetic differs is told."""
    made = converted(LINEAR + "dtype: float64\nout_dtype: bfloat16\n")
    assert made.data["output"] == {"dtype": "bfloat16"}
    (note,) = made.notes
    assert (
        str(note)
        == "merge.yml:5 dtype: mergekit also computes in float64; here that is done in float32, and rounded once"
    )
