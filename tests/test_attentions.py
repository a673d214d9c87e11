"""What a plan refuses of operations that turn attention heads, and which modules may be turned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.checkpoint import Checkpoint
from surgery.dtypes import DTYPES
from surgery.errors import PlanError
from surgery.header import TensorInfo
from surgery.heads import Heads, find_heads
from tests.gauges import ALIGN, CONFIG, HIDDEN, QUERIES, STEPS, D, Tensors, name, random
from tests.pairs import write

TABLES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "architectures.json").read_text())
Config = Mapping[str, Any]


def faults(
    place: Path, *steps: Mapping[str, Any], own: Tensors | None = None, other: Tensors | None = None, **configs: Config
) -> list[str]:
    """What is wrong with a plan; without a `config` the models have that of their tensors, with an empty one none."""
    paths = []
    for role, tensors in (("other", other), ("own", own)):
        config = configs.get(f"{role}_config", configs.get("config", CONFIG))
        paths.append(write(place / role, random() if tensors is None else tensors, config=config))
        if not config:
            (place / role / "config.json").unlink()
    with pytest.raises(PlanError) as caught:
        surgery.plan(STEPS | {"steps": list(steps or (ALIGN,))}, paths)
    assert all("steps[" in fault.where for fault in caught.value.faults)
    return [str(fault) for fault in caught.value.faults]


def selected(*tensors: str, **keys: Any) -> dict[str, Any]:
    return {**ALIGN, "select": {"tensors": list(tensors), **keys}}


def attention(**children: Tensor | None) -> Tensors:
    """Random tensors with these children of the attention of every layer; None removes one."""
    tensors = random(bias=False)
    for layer in (0, 1):
        for child, W in children.items():
            if W is None:
                del tensors[name(layer, f"{child}.weight")]
            else:
                tensors[name(layer, f"{child}.weight")] = W.clone()
    return tensors


@pytest.mark.parametrize(
    ("chosen", "edited", "left"),
    [
        (["*.v_proj.weight"], "v_proj.weight", "v_proj.bias"),
        (["*.v_proj.*"], "v_proj.weight", "o_proj.weight"),
        (["*.o_proj.*", "*.v_proj.weight"], "v_proj.weight", "v_proj.bias"),
        (["*.v_proj.bias"], "v_proj.bias", "v_proj.weight"),
    ],
)
def test_parts_are_selected_together(tmp_path: Path, chosen: list[str], edited: str, left: str) -> None:
    """One of the pair, or the bias, without the others: told once, with an example, for all layers."""
    (message,) = faults(tmp_path, selected(*chosen))
    assert f"`{name(0, edited)}` is edited and `{name(0, left)}` is not" in message
    assert "turn together; select all of them, or none" in message
    assert "(2 tensors in all)" in message


def test_layers_may_be_selected(tmp_path: Path) -> None:
    """Whole modules of some layers, with more beside them that is not edited; nothing else is."""
    models = [write(tmp_path / role, random(seed=i), config=CONFIG) for i, role in enumerate(("other", "own"))]
    plan = surgery.plan(STEPS | {"steps": [selected("all", layers="last 1")]}, models)
    edited = {tensor.slot.name for tensor in plan.tensors if tensor.steps}
    assert edited == {name(1, leaf) for leaf in ("v_proj.weight", "v_proj.bias", "o_proj.weight")}


def test_nothing_to_turn(tmp_path: Path) -> None:
    """A selection without any part is an error, not a step without effect."""
    (message,) = faults(tmp_path, selected("mlp"))
    assert "`procrustes_align` applies to none of the 2 selected tensors" in message
    assert "it needs value and output projections of attention" in message


@pytest.mark.parametrize("leaf", ["v_proj.weight", "o_proj.weight", "v_proj.bias"])
def test_it_is_the_first_step(tmp_path: Path, leaf: str) -> None:
    """A part that an earlier step computes, whichever: the rotation would be that of other tensors."""
    early = {"op": "linear", "models": ["other", "result"], "select": {"tensors": [f"*.{leaf}"]}}
    (message,) = faults(tmp_path, early, ALIGN)
    assert "steps[1]" in message
    assert f"an earlier step changes `{name(0, leaf)}`" in message
    assert "let it be the first step of attention" in message
    assert "(2 tensors in all)" in message


def test_it_is_the_only_one(tmp_path: Path) -> None:
    """A second alignment is after an earlier step, too."""
    assert "an earlier step changes" in faults(tmp_path, ALIGN, ALIGN)[0]


@pytest.mark.parametrize(
    "late",
    [
        {"op": "linear", "models": ["other", "own"], "select": {"tensors": ["*.o_proj.*"]}},
        {"op": "reset_layers", "from": "other", "select": {"tensors": ["*.v_proj.*"]}},
    ],
    ids=lambda step: step["op"],
)
def test_later_steps_replace_all_parts_or_none(tmp_path: Path, late: dict[str, Any]) -> None:
    """Half of a turned module is another function; a whole one that is replaced is a step without effect."""
    (message,) = faults(tmp_path, ALIGN, late)
    assert "steps[0]" in message
    assert "a later step replaces `" in message
    assert "`result` names it in `models`" in message
    (message,) = faults(tmp_path / "all", ALIGN, late | {"select": {"tensors": ["*.o_proj.*", "*.v_proj.*"]}})
    assert "has no effect" in message


@pytest.mark.parametrize(
    ("children", "config", "reason"),
    [
        ({"attn_sub_norm": torch.ones(D * QUERIES)}, {}, "a norm stands between them"),
        ({"v_norm": torch.ones(D)}, {}, "a norm stands between them"),
        ({"q_proj": torch.ones(2 * D * QUERIES, HIDDEN)}, {}, "a gated attention?"),
        ({"g_proj": torch.ones(D * QUERIES, HIDDEN)}, {}, "a gate stands between them"),
        ({}, {"attn_output_gate": True}, "a gate stands between them (`attn_output_gate`)"),
        ({}, {"clip_qkv": 8.0}, "values are clipped (`clip_qkv`)"),
        ({}, {"num_kv_shared_layers": 1}, "several layers use the same values"),
        ({"dt_proj": torch.ones(2, D)}, {}, "what `dt_proj` beside them does is not known"),
        ({"q_norm": torch.ones(4)}, {}, "does not tell the size of a head"),
        ({}, {"head_dim": None, "hidden_size": None}, "does not tell the size of a head"),
        ({}, {"head_dim": 5}, "heads of 5 do not divide them"),
        ({}, {"num_attention_heads": 3}, "says `num_attention_heads: 3`, and the shapes 6 heads of 8"),
        ({}, {"num_key_value_heads": 6}, "says `num_key_value_heads: 6`, and the shapes 2 heads of 8"),
        ({"v_proj": torch.ones(2, D, HIDDEN)}, {}, "they are no plain matrices"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_modules_where_it_is_not_exact(
    tmp_path: Path, children: dict[str, Tensor], config: Config, reason: str
) -> None:
    """Whatever stands between values and output, or hides the heads, is named."""
    tensors = attention(**children)
    (message,) = faults(tmp_path, own=tensors, other=tensors, config={**CONFIG, **config})
    assert "`procrustes_align` cannot turn value and output projections of `model.layers.0.self_attn`" in message
    assert reason in message
    assert "leave it out with `exclude`" in message


def test_what_may_stand_beside_them(tmp_path: Path) -> None:
    """Norms of queries and keys, sinks, tables of positions: they decide over the weights alone."""
    tensors = attention(q_norm=torch.ones(D), k_norm=torch.ones(D)) | {name(0, "sinks"): torch.ones(QUERIES)}
    tensors[name(0, "rotary_emb.inv_freq")] = torch.ones(4)
    models = [write(tmp_path / role, tensors, config=CONFIG) for role in ("other", "own")]
    assert sum(bool(tensor.steps) for tensor in surgery.plan(STEPS, models).tensors) == 4


@pytest.mark.parametrize(
    ("role", "config", "reason"),
    [
        ("own", {}, "cannot turn"),
        ("other", {}, "the heads of `model.layers.0.self_attn` of `other` are not known: `config.json` does not tell"),
        ("other", {**CONFIG, "head_dim": 4, "num_attention_heads": 12, "num_key_value_heads": 4}, "12 query and 4 key"),
        (
            "own",
            {**CONFIG, "num_attention_heads": None},
            "`own` (",
        ),
        ("own", {**CONFIG, "num_key_value_heads": None}, "does not tell how many heads there are"),
        ("other", {**CONFIG, "num_key_value_heads": None}, "the `config.json` of `other`"),
    ],
    ids=str,
)
def test_both_configurations_tell_the_same_heads(tmp_path: Path, role: str, config: Config, reason: str) -> None:
    """No configuration, no numbers of heads, or other heads in `from` than in what is edited."""
    (message,) = faults(tmp_path, **{f"{role}_config": config})
    assert reason in message


@pytest.mark.parametrize(
    ("child", "word"), [("qkv_proj", "(fused)"), ("c_attn", "(fused)"), ("kv_b_proj", "(MLA)"), ("strange", "no value")]
)
def test_projections_that_are_not_apart(tmp_path: Path, child: str, word: str) -> None:
    """Fused projections, latent attention, and what nobody knows: one message that names the matrix."""
    tensors = attention(v_proj=None, k_proj=None, q_proj=None, **{child: torch.ones(80, HIDDEN)})
    (message,) = faults(tmp_path, own=tensors, other=tensors)
    assert word in message
    assert child in message or word == "no value"
    models = [tmp_path / "other", tmp_path / "own"]
    with pytest.raises(PlanError, match="applies to none of"):  # and left out as told
        surgery.plan(STEPS | {"steps": [selected("all", exclude=["*.self_attn.*"])]}, models)


def test_what_from_lacks(tmp_path: Path) -> None:
    """A bias, a shape or a dtype of `from` that differs is told as of any other step."""
    own, short = random(), random(bias=False)
    assert "`model.layers.0.self_attn.v_proj.bias` is in `own` and not in `other`" in faults(tmp_path, other=short)[0]
    narrow = {key: W[:, :-1].clone() if key.endswith("v_proj.weight") else W for key, W in own.items()}
    assert "shapes differ" in faults(tmp_path / "shape", other=narrow)[0]
    half = {key: W.half() for key, W in own.items()}
    assert all("dtypes differ" in message for message in faults(tmp_path / "dtype", other=half))
    deep = random(layers=3)
    assert "has 2 layers in `own` and 3 in `other`" in faults(tmp_path / "layers", other=deep)[0]


def test_quantised_weights(tmp_path: Path) -> None:
    """Values without their scales cannot be turned, nor the output projection without them."""
    packed = {key: W.to(torch.int8) if key.endswith("v_proj.weight") else W for key, W in random().items()}
    messages = faults(tmp_path, own=packed, other=packed)
    assert any("is quantised (I8)" in message for message in messages)


def test_slices_without_layers_of_from(tmp_path: Path) -> None:
    """A slice in which `from` has no layers, or the models other heads, is told as such."""
    other = CONFIG | {"num_hidden_layers": 2}
    models = [
        write(tmp_path / role, random(layers=n), config=CONFIG | {"num_hidden_layers": n})
        for role, n in (("other", 1), ("own", 2))
    ]
    recipe = STEPS | {"start": "own", "slices": [{"own": "0-1"}, {"own": 0, "other": 0}]}
    with pytest.raises(PlanError, match="names no layers of `other`"):
        surgery.plan(recipe, models)
    heads = {"head_dim": 4, "num_attention_heads": 12, "num_key_value_heads": 4}
    models[0] = write(tmp_path / "others", random(), config=other | heads)
    with pytest.raises(
        PlanError, match="12 query and 4 key/value heads of 4, where 6 query and 2 key/value heads of 8"
    ):
        surgery.plan(STEPS | {"start": "own", "slices": [{"own": "0-1", "other": "0-1"}]}, models)


EXPECTED = {  # of real architectures with the numbers of heads that their configurations in the table lack
    "llama": True,
    "qwen2": True,
    "qwen3": True,
    "qwen3_moe": True,
    "mistral": True,
    "mixtral": True,
    "gpt_oss": True,
    "phi": True,
    "opt": True,
    "gemma2": True,
    "gemma3": True,
    "olmo2": True,
    "cohere": True,
    "starcoder2": True,
    "qwen3_next": False,
    "deepseek_v3": False,
    "phi3": False,
    "gpt_neox": False,
    "gpt2": False,
    "bloom": False,
    "falcon": False,
    "mpt": False,
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_architectures(kind: str) -> None:
    """Which of transformers' models may be turned, from their own names and shapes."""
    table = TABLES[kind]
    tensors = {key: TensorInfo(key, DTYPES["F32"], tuple(shape), "f", 0, 0) for key, shape in table["tensors"].items()}
    config = dict(table["config"])
    value = next((key for key in tensors if "vision" not in key and key.endswith(".v_proj.weight")), None)
    if value is not None:  # four query heads in all of them
        query = tensors[value.replace("v_proj", "q_proj")].shape[0]
        d = query // (8 if kind == "qwen3_next" else 4)
        heads = {"head_dim": d, "num_attention_heads": 4, "num_key_value_heads": tensors[value].shape[0] // d}
        config |= {"text_config": {**config["text_config"], **heads}} if "text_config" in config else heads
    checkpoint = Checkpoint(kind, Path(), None, None, tensors, (), None, {}, config, True)
    decoder = checkpoint.anatomy.decoder
    assert decoder is not None
    found = [heads for module, heads in find_heads(checkpoint).items() if module.startswith(f"{decoder.prefix}.")]
    assert any(isinstance(each, Heads) for each in found) == EXPECTED[kind], found
