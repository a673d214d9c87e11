"""Everything that can be wrong with a recipe file of mergekit, or that has no counterpart here: one message each."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import RecipeError
from surgery.recipe import load
from surgery.yaml_source import read_yaml
from tests.mergekit.files import FILES

TIES = """\
models:
  - model: sft
    parameters: {weight: 0.5, density: 0.5}
  - model: math
    parameters: {weight: 0.5}
base_model: base
merge_method: ties
"""
SLERP = """\
models: [{model: sft}]
base_model: base
merge_method: slerp
parameters:
  t: 0.5
"""
SLICES = """\
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
      - {model: b, layer_range: [4, 8]}
base_model: a
merge_method: slerp
parameters: {t: 0.5}
"""

OF_B = """\
  - base_model: b
    sources: [{model: b, layer_range: [0, 1]}, {model: c, layer_range: [0, 1]}]
"""

FAULTS = {
    "unknown method": (
        TIES.replace("ties", "tie"),
        ["merge.yml:7 merge_method: unknown merge method `tie`; did you mean `ties`?"],
    ),
    "no method": (
        TIES.replace("merge_method: ties\n", ""),
        [
            (
                "merge.yml:1: `merge_method` is missing; expected what to do with the models; this looks like a recipe "
                "file of mergekit, which needs one of `linear`, "
            )
        ],
    ),
    "only models": (
        "models: [{model: a}, {model: b}]\ndtype: bfloat16\n",
        ["merge.yml:1: `merge_method` is missing; expected what to do with the models; this looks like a recipe file"],
    ),
    "only slices": (
        "slices: [{sources: [{model: a, layer_range: [0, 4]}]}]\n",
        ["merge.yml:1: `merge_method` is missing; expected what to do with the models; this looks like a recipe file"],
    ),
    "a method with a hyphen": (
        TIES.replace("merge_method", "merge-method").replace("base_model: base\n", ""),
        ["merge.yml:6 merge-method: unknown key `merge-method`; did you mean `merge_method`? (this looks like a rec"],
    ),
    "a method in one word": (
        "models: [{model: a}]\nmergemethod: linear\n",
        ["merge.yml:2 mergemethod: unknown key `mergemethod`; did you mean `merge_method`? (this looks like a rec"],
    ),
    "mixture of experts": (
        "base_model: a\ngate_mode: hidden\nexperts: [{source_model: b, positive_prompts: []}]\n",
        [
            (
                "merge.yml:3 experts: found `experts`; mergekit-moe makes a mixture of experts of such a file; this is "
                "not supported: merge the models into one"
            )
        ],
    ),
    "evolution": (
        "genome: {models: [a, b], merge_method: ties}\ntasks: []\n",
        ["merge.yml:1 genome: found `genome`; mergekit-evolve searches for a merge with such a file; this is not supp"],
    ),
    "unknown key": (
        TIES + "dtpye: float16\n",
        ["merge.yml:8 dtpye: unknown key `dtpye`; did you mean `dtype`? (mergekit ignores it)"],
    ),
    "unknown key of a model": (
        TIES.replace("  - model: math\n", "  - model: math\n    layers: [0, 3]\n"),
        ["merge.yml:5 models[1].layers: unknown key `layers`; expected: `model`, `parameters`, `layer_range` (merg"],
    ),
    "a parameter in another place": (
        TIES.replace("  - model: math\n", "  - model: math\n    density: 0.3\n"),
        ["merge.yml:5 models[1].density: unknown key `density`; put it under `parameters` (mergekit ignores it)"],
    ),
    "an adapter beside its model": (
        TIES.replace("  - model: math\n", "  - model: math\n    lora: org/lora\n"),
        ["merge.yml:5 models[1].lora: unknown key `lora`; write `model: MODEL+ADAPTER` (mergekit ignores it)"],
    ),
    "models to be measured": (
        "models: [{model: a}, {model: b}]\nmetric_method: all\n",
        ["merge.yml:2 metric_method: unknown key `metric_method`; did you mean `merge_method`? (this looks like"],
    ),
    "models and no method": (
        "models: [{model: a}, {model: b}]\ndtype: float32\n",
        ["merge.yml:1: `merge_method` is missing; expected what to do with the models"],
    ),
    "a revision in another place": (
        TIES.replace("  - model: math\n", "  - model: math\n    revision: v2\n"),
        ["merge.yml:5 models[1].revision: unknown key `revision`; write `model: org/name@REVISION` (mergekit"],
    ),
    "unknown parameter": (
        TIES.replace("weight: 0.5}", "weight: 0.5, wieght: 1}"),
        ["merge.yml:5 models[1].parameters.wieght: unknown parameter `wieght`; did you mean `weight`? (mergekit"],
    ),
    "unknown key of a filter": (
        SLERP.replace("0.5", "{filters: mlp, value: 1}"),
        ["merge.yml:5 parameters.t: unknown key `filters`; expected `filter`, `value` (mergekit ignores it)"],
    ),
    "no value beside a filter": (
        SLERP.replace("0.5", "{filter: mlp}"),
        ["merge.yml:5 parameters.t: `value` is missing; expected a value, a list of values over the layers"],
    ),
    "a filter that is no text": (
        SLERP.replace("0.5", "{filter: 3, value: 1}"),
        ["merge.yml:5 parameters.t: found `3` for `filter`; expected a part of tensors' names"],
    ),
    "nothing": (SLERP.replace("0.5", "[]"), ["merge.yml:5 parameters.t: found an empty list; expected a value"]),
    "values and filters": (
        SLERP.replace("0.5", "[0.5, {filter: mlp, value: 1}]"),
        ["merge.yml:5 parameters.t: found a list; expected a value"],
    ),
    "no number": (
        TIES.replace("weight: 0.5}", "weight: much}"),
        ["merge.yml:5 models[1].parameters.weight: found `much`; expected a number"],
    ),
    "truth for a number": (SLERP.replace("0.5", "true"), ["merge.yml:5 parameters.t: found `true`; expected a number"]),
    "a number for truth": (
        TIES + "parameters: {normalize: 2}\n",
        ["merge.yml:8 parameters.normalize: found `2`; expected `true` or `false`"],
    ),
    "truth by tensor": (
        TIES + "parameters:\n  normalize: [{filter: mlp, value: true}, {value: false}]\n",
        ["merge.yml:9 parameters.normalize: found values that differ from tensor to tensor; expected one for all"],
    ),
    "half a step": (
        "models: [{model: a}, {model: b}]\nmerge_method: karcher\nparameters: {max_iter: 2.5}\n",
        ["merge.yml:3 parameters.max_iter: found `2.5`; expected a whole number"],
    ),
    "out of range": (
        SLERP.replace("0.5", "[0, 1.5]"),
        ["merge.yml:5 parameters.t: found `1.5`; expected a number between 0 and 1"],
    ),
    "a needed parameter": (
        SLERP.replace("  t: 0.5", "  normalize: true"),
        ["merge.yml:3 merge_method: `t` is missing under `parameters`; `slerp` needs it"],
    ),
    "a needed parameter of a model": (
        TIES.replace("weight: 0.5}", "density: 1}"),
        ["merge.yml:4 models[1]: `weight` of `math` is missing; `ties` needs it for each model"],
    ),
    "the base of linear": (
        TIES.replace("ties", "linear"),
        ["merge.yml:6 base_model: `weight` of `base` is missing; `linear` needs it for each model"],
    ),
    "no base": (
        TIES.replace("base_model: base\n", ""),
        ["merge.yml:6 merge_method: `base_model` is missing; `ties` needs it"],
    ),
    "only the base": (
        SLERP.replace("model: sft", "model: base"),
        ["merge.yml:3 merge_method: `slerp` found 0 models beside the base model; expected at least 1 model"],
    ),
    "too many": (
        SLERP.replace("[{model: sft}]", "[{model: sft}, {model: math}]"),
        ["merge.yml:3 merge_method: `slerp` found 2 models beside the base model; expected 1 model"],
    ),
    "twice": (TIES.replace("math", "sft"), ["merge.yml:4 models[1]: `sft` is listed twice; keep one"]),
    "two adapters": (
        TIES.replace("model: math", "model: base+one+two"),
        ["merge.yml:4 models[1].model: found `base+one+two`; expected `MODEL`, or `MODEL+ADAPTER` for a model with"],
    ),
    "no adapter": (
        TIES.replace("model: math", "model: base+"),
        ["merge.yml:4 models[1].model: found `base+`; expected `MODEL`, or `MODEL+ADAPTER` for a model with a LoRA"],
    ),
    "an adapter in another place": (
        TIES.replace("model: math", "model: {model: {path: base, lora: a}}"),
        ["merge.yml:4 models[1].model: found `lora`; expected `path`, `revision`"],
    ),
    "an adapter that is no text": (
        TIES.replace("model: math", "model: {model: base, lora: {revision: a}}"),
        ["merge.yml:4 models[1].model: found nothing; expected `path` and `revision` of a model or of an adapter"],
    ),
    "an adapter twice": (
        TIES.replace("model: sft", "model: {model: base, lora: a}").replace("model: math", "model: base+a"),
        ["merge.yml:4 models[1]: `base+a` is listed twice; keep one"],
    ),
    "another architecture": (
        TIES.replace("model: math", "model: {model: base, override_architecture: LlamaForCausalLM}"),
        ["merge.yml:4 models[1].model: found `override_architecture`; it is not supported: remove it"],
    ),
    "no model": (
        TIES.replace("model: math", "model: 3"),
        ["merge.yml:4 models[1].model: found `3`; expected a directory or a hub id `org/name[@revision]`"],
    ),
    "two revisions": (
        TIES.replace("model: math", "model: a@b@c"),
        ["merge.yml:4 models[1].model: found `a@b@c`; expected one"],
    ),
    "two revisions of an adapter": (
        TIES.replace("model: math", "model: a@b+c@d@e"),
        ["merge.yml:4 models[1].model: found `a@b+c@d@e`; expected one"],
    ),
    "one of several modules": (
        "merge_method: linear\nmodules: {text: {models: [{model: a}]}}\n",
        ["merge.yml:2 modules.text: found the module `text` alone, and mergekit writes no other; expected `default`"],
    ),
    "modules in their own ways": (
        "merge_method: linear\nmodules: {text: {models: [{model: a}]}, vision: {models: [{model: b}]}}\n",
        ["merge.yml:2 modules.vision: found another merge than that of `text`; modules that are merged in ways of the"],
    ),
    "modules and models": (
        "merge_method: linear\nmodels: [{model: a}]\nmodules: {default: {models: [{model: a}]}}\n",
        ["merge.yml:3 modules: found `models` and `modules`; expected one of `models` and `slices`"],
    ),
    "nothing in a module": (
        "merge_method: linear\nmodules: {default: {parameters: {weight: 1}}}\n",
        ["merge.yml:2 modules.default: found neither `models` nor `slices`; expected one of"],
    ),
    "unknown key of a module": (
        "merge_method: linear\nmodules: {default: {models: [{model: a}], weight: 1}}\n",
        ["merge.yml:2 modules.default.weight: unknown key `weight`; put it under `parameters` (mergekit ignores it)"],
    ),
    "neither": ("merge_method: linear\n", ["merge.yml:1: found neither `models` nor `slices`; expected one of"]),
    "an empty list": (
        "merge_method: linear\nmodels: []\n",
        ["merge.yml:2 models: found nothing in `models`; expected one of `models` and `slices`"],
    ),
    "both": (
        SLICES + "models: [{model: a}]\n",
        ["merge.yml:1 slices: found `models` and `slices`; expected one of `models` and `slices`"],
    ),
    "dtype": (
        TIES + "dtype: float64\n",
        ["merge.yml:8 dtype: found `float64`; outputs may have `bfloat16`, `float16` or `float32`: add `out_dtype`"],
    ),
    "dtype of any kind": (
        TIES + "dtype: auto\nout_dtype: float64\n",
        [
            "merge.yml:8 dtype: found `auto`; expected `bfloat16`, `float16` or `float32`, which outputs may have (",
            "merge.yml:9 out_dtype: found `float64`; expected `bfloat16`, `float16` or `float32`, which outp",
        ],
    ),
    "chat template": (
        TIES + "chat_template: vicuna\n",
        ["merge.yml:8 chat_template: found `vicuna`; expected `auto`, a template in Jinja, or one of `alpaca`, "],
    ),
    "the tokenizer of no model": (
        TIES + "tokenizer_source: org/other\n",
        ["merge.yml:8 tokenizer_source: `org/other` is not among the models, so no embedding has its tokens; expected"],
    ),
    "padding to nothing": (
        TIES + "tokenizer:\n  pad_to_multiple_of: 0\n",
        ["merge.yml:9 tokenizer.pad_to_multiple_of: found `0`; expected 1 or more"],
    ),
    "rows of tokens": (
        TIES
        + "tokenizer:\n  tokens:\n    <a>: {source: org/other}\n    <b>: {source: {kind: model_token, model: sft}}\n"
        "    <c>: {source: {kind: mean}}\n    <d>: {force: true}\n"
        "    <e>: {source: {kind: model_token, model: sft, token: 3}}\n    <f>: {from: sft}\n",
        [
            "merge.yml:11 tokenizer.tokens.<b>.source: expected one of `token` and `token_id` beside",
            "merge.yml:12 tokenizer.tokens.<c>.source: found `mean` for `kind`; expected `zero` or `model_token`",
            "merge.yml:13 tokenizer.tokens.<d>: `source` is missing; expected where its row comes from",
            "merge.yml:14 tokenizer.tokens.<e>.source: found `3`; expected the text of a token as `token`, or its id",
            "merge.yml:15 tokenizer.tokens.<f>: `source` is missing; expected where its row comes from",
            "merge.yml:15 tokenizer.tokens.<f>.from: unknown key `from`; expected: `source`, `force` (mergekit ignores",
        ],
    ),
    "rows of no model": (
        TIES + "tokenizer: {tokens: {<a>: {source: org/other}}}\n",
        ["merge.yml:8 tokenizer.tokens.<a>.source: `org/other` is not among the models, so none of its rows is read"],
    ),
    "a tokenizer of nothing": (
        TIES + "tokenizer: {source: }\n",
        ["merge.yml:8 tokenizer.source: found nothing; expected a directory or a hub id"],
    ),
    "two tokenizers": (
        TIES + "tokenizer_source: base\ntokenizer: {source: base}\n",
        ["merge.yml:8 tokenizer_source: found `tokenizer`, too; keep one of them"],
    ),
    "backwards": (
        SLICES.replace("[0, 4]", "[4, 0]"),
        ["merge.yml:3 slices[0].sources[0].layer_range: found the layers from 4 up to 0; expected `[FIRST, END]`"],
    ),
    "different lengths": (
        SLICES.replace("[4, 8]", "[4, 9]"),
        ["merge.yml:4 slices[0].sources[1].layer_range: found 5 layers; expected 4, as many as of the slice's first"],
    ),
    "a slice without the base": (
        SLICES.replace("base_model: a", "base_model: c"),
        ["merge.yml:2 slices[0]: the base model `c` is not among the sources; `slerp` needs it"],
    ),
    "a filter for another layer": (
        SLICES.replace(
            "slerp\nparameters: {t: 0.5}", "linear\nparameters: {weight: [{filter: s.5.m, value: 1}, {value: 0}]}"
        ),
        ["merge.yml:7 parameters.weight: the filter `s.5.m` is for the names in `b`, whose layers get other numb"],
    ),
    "one end": (SLICES.replace("[0, 4]", "[4]"), ["merge.yml:3 slices[0].sources[0].layer_range"]),
    "no path": (
        TIES.replace("model: math", "modl: math"),
        ["merge.yml:4 models[1].modl: unknown key `modl`; did you mean `model`? (mergekit ignores it)"],
    ),
    "no map": (
        "models: [a, b]\nmerge_method: linear\n",
        [
            "merge.yml:1 models[0]: found `a`; expected a map: `model: a`",
            "merge.yml:1 models[1]: found `b`; expected a map: `model: b`",
        ],
    ),
    "no map in a slice": (
        "slices: [{sources: [a]}]\nmerge_method: linear\n",
        ["merge.yml:1 slices[0].sources[0]: found `a`; expected a map: `model: a`"],
    ),
    "only parameters": (
        TIES.replace("  - model: math\n    para", "  - para"),
        ["merge.yml:4 models[1]: `model` is missing; expected the path or the hub id of a model"],
    ),
    "no list": (
        "models: a\nmerge_method: linear\n",
        ["merge.yml:1 models: found `a`; expected a list: `[a]`"],
    ),
    "infinity": (
        TIES.replace("weight: 0.5}", "weight: inf}"),
        ["merge.yml:5 models[1].parameters.weight: found `inf`; exp"],
    ),
    "several documents": (
        f"name: one\n{TIES}---\nname: two\n{TIES}",
        [
            (
                "merge.yml:9: a second document starts here; expected one; mergekit-multi (once mergekit-mega) runs "
                "several merges of one file; this is not supported: give each merge a file of its own, and run them"
            )
        ],
    ),
    "several documents without a method": (
        "name: one\nmodels: [{model: a}]\n---\nname: two\n",
        ["merge.yml:1: `merge_method` is missing", "merge.yml:3: a second document starts here; expected one; mergek"],
    ),
    "an anchor below": (
        TIES.replace("base_model: base", "base_model: *m").replace("merge_method: ties", "merge_method: &m ties"),
        ["merge.yml:6 base_model: found the YAML alias `*m` of an anchor that is not above it, or not ended"],
    ),
    "a tag": (
        TIES.replace("weight: 0.5}", "weight: !!python/tuple 0.5}"),
        ["merge.yml:5 models[1].parameters.weight: found the YAML tag `tag:yaml.org,2002:python/tuple`; expected"],
    ),
    "another value than its tag": (
        TIES.replace("weight: 0.5}", "weight: !!int 0.5}"),
        ["merge.yml:5 models[1].parameters.weight: found `0.5`; expected what its tag says"],
    ),
    "merged with no map": (
        TIES.replace("weight: 0.5}", "weight: 0.5, <<: [a]}"),
        ["merge.yml:5 models[1].parameters.<<: found `a`; expected a map, or a list of maps, to be merged"],
    ),
    "a base for passthrough": (
        SLERP.replace("slerp", "passthrough"),
        ["merge.yml:3 merge_method: `passthrough` found 2 models with the base model; expected 1 model"],
    ),
    "all at once": (
        TIES.replace("weight: 0.5}", "wait: 0.5}") + "parameters: {normalize: maybe}\ntokenizer_source: other\n",
        [
            "merge.yml:4 models[1]: `weight` of `math` is missing",
            "merge.yml:5 models[1].parameters.wait: unknown parameter `wait`",
            "merge.yml:8 parameters.normalize: found `maybe`",
            "merge.yml:9 tokenizer_source: `other` is not among the models",
        ],
    ),
}


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every container in the data with a key or index in it."""
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [(data, key) for key, _ in items] + [place for _, item in items for place in places(item)]


@given(st.data())
def test_whatever_is_written_is_a_recipe_or_a_fault(data: st.DataObject):
    """Files in which one thing is replaced by something else load, or are refused as they should be."""
    text = data.draw(st.sampled_from([TIES, SLERP, SLICES, *(text for text, _ in FILES.values())]))
    read = copy.deepcopy(read_yaml(text, "").data)
    container, key = data.draw(st.sampled_from(places(read)))
    container[key] = data.draw(values)
    with contextlib.suppress(RecipeError):
        load(read)


scalars = st.sampled_from([None, True, 0, -1, 2.5, "", "yes", "1e3", "inf", "a+b", "*", "x" * 99, 10**30])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "filter", "value", "weight", "t", "sources"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One message for each fault, with its line and path, and no other."""
    text, expected = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merge.yml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load("merge.yml")
    found = [str(fault) for fault in caught.value.faults]
    assert len(found) == len(expected), found
    for message, start in zip(found, expected, strict=True):
        assert message.startswith(start), message
