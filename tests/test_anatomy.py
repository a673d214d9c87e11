from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.anatomy import Anatomy, Stack, anatomy
from tests.conftest import llama_arrays, tensor_infos

TABLES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "architectures.json").read_text())

# Decoder, its layers, token embedding and head of each table.
EXPECTED: dict[str, tuple[str, int, str, str | None]] = {
    "llama": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "llama_tied": ("model.layers", 3, "model.embed_tokens.weight", None),
    "llama_bare": ("layers", 3, "embed_tokens.weight", None),
    "llama_classifier": ("model.layers", 3, "model.embed_tokens.weight", None),
    "mistral": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen3": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen3_next": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "mixtral": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen3_moe": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen2_moe": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "deepseek_v3": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "gpt_oss": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "phi3": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "phi": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "gpt_neox": ("gpt_neox.layers", 3, "gpt_neox.embed_in.weight", "embed_out.weight"),
    "gpt2": ("transformer.h", 3, "transformer.wte.weight", None),
    "gptj": ("transformer.h", 3, "transformer.wte.weight", "lm_head.weight"),
    "opt": ("model.decoder.layers", 3, "model.decoder.embed_tokens.weight", None),
    "bloom": ("transformer.h", 3, "transformer.word_embeddings.weight", None),
    "falcon": ("transformer.h", 3, "transformer.word_embeddings.weight", None),
    "mpt": ("transformer.blocks", 3, "transformer.wte.weight", None),
    "gemma2": ("model.layers", 3, "model.embed_tokens.weight", None),
    "gemma3": ("language_model.model.layers", 3, "language_model.model.embed_tokens.weight", None),
    "olmo2": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "starcoder2": ("model.layers", 3, "model.embed_tokens.weight", None),
    "cohere": ("model.layers", 3, "model.embed_tokens.weight", None),
    "mamba": ("backbone.layers", 3, "backbone.embeddings.weight", None),
    "jamba": ("model.layers", 4, "model.embed_tokens.weight", "lm_head.weight"),
    "mllama": (
        "language_model.model.layers",
        4,
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
    ),
    "qwen2_vl": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen2_5_vl": ("model.layers", 3, "model.embed_tokens.weight", "lm_head.weight"),
    "llava": (
        "language_model.model.layers",
        3,
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
    ),
    "llama4": (
        "language_model.model.layers",
        3,
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
    ),
    "t5": ("decoder.block", 3, "shared.weight", None),
    "whisper": ("model.decoder.layers", 3, "model.decoder.embed_tokens.weight", None),
    "bert": ("encoder.layer", 3, "embeddings.word_embeddings.weight", None),
}

OTHER_STACKS = {
    "gemma3": {"vision_tower.encoder.layers": 2},
    "mllama": {"vision_model.transformer.layers": 3, "vision_model.global_transformer.layers": 2},
    "qwen2_vl": {"visual.blocks": 2},
    "qwen2_5_vl": {"visual.blocks": 2},
    "llava": {"vision_tower.encoder.layers": 2},
    "llama4": {"vision_model.model.layers": 2},
    "t5": {"encoder.block": 3},
    "whisper": {"model.encoder.layers": 2},
}

# Every name that occurs within a layer of these models, `.weight` and `.bias` taken off, deeper integers as `*`.
WITHIN = {
    "norm": """
        attention.output.LayerNorm cross_attn.k_norm cross_attn.q_norm encoder_attn_layer_norm final_layer_norm
        input_layernorm layer.*.layer_norm layer_norm1 layer_norm2 linear_attn.norm ln_1 ln_2 mamba.b_layernorm
        mamba.c_layernorm mamba.dt_layernorm norm norm1 norm2 norm_1 norm_2 output.LayerNorm
        post_attention_layernorm post_feedforward_layernorm pre_feedforward_layernorm pre_ff_layernorm
        self_attn.k_norm self_attn.kv_a_layernorm self_attn.q_a_layernorm self_attn.q_norm self_attn_layer_norm
    """,
    "mlp": """
        block_sparse_moe.experts.*.w1 block_sparse_moe.experts.*.w2 block_sparse_moe.experts.*.w3
        block_sparse_moe.gate cross_attn_mlp_gate fc1 fc2 feed_forward.down_proj feed_forward.experts.*.down_proj
        feed_forward.experts.*.gate_proj feed_forward.experts.*.up_proj feed_forward.experts.down_proj
        feed_forward.experts.gate_up_proj feed_forward.gate_proj feed_forward.router
        feed_forward.shared_expert.down_proj feed_forward.shared_expert.gate_proj
        feed_forward.shared_expert.up_proj feed_forward.up_proj ffn.down_proj ffn.up_proj gate_ffn
        intermediate.dense layer.*.DenseReluDense.wi layer.*.DenseReluDense.wo mlp.c_fc mlp.c_proj
        mlp.dense_4h_to_h mlp.dense_h_to_4h mlp.down_proj mlp.experts.*.down_proj mlp.experts.*.gate_proj
        mlp.experts.*.up_proj mlp.experts.down_proj mlp.experts.down_proj_bias mlp.experts.gate_up_proj
        mlp.experts.gate_up_proj_bias mlp.fc1 mlp.fc2 mlp.fc_in mlp.fc_out mlp.gate
        mlp.gate.e_score_correction_bias mlp.gate_proj mlp.gate_up_proj mlp.router mlp.shared_expert.down_proj
        mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert_gate mlp.shared_experts.down_proj
        mlp.shared_experts.gate_proj mlp.shared_experts.up_proj mlp.up_proj output.dense
    """,
    "attention": """
        attention.dense attention.output.dense attention.query_key_value attention.self.key attention.self.query
        attention.self.value attn.Wqkv attn.c_attn attn.c_proj attn.k_proj attn.out_proj attn.proj attn.q_proj
        attn.qkv attn.v_proj cross_attn.k_proj cross_attn.o_proj cross_attn.q_proj cross_attn.v_proj
        cross_attn_attn_gate encoder_attn.k_proj encoder_attn.out_proj encoder_attn.q_proj encoder_attn.v_proj
        gate_attn layer.*.EncDecAttention.k layer.*.EncDecAttention.o layer.*.EncDecAttention.q
        layer.*.EncDecAttention.v layer.*.SelfAttention.k layer.*.SelfAttention.o layer.*.SelfAttention.q
        layer.*.SelfAttention.relative_attention_bias layer.*.SelfAttention.v linear_attn.A_log
        linear_attn.conv1d linear_attn.dt_bias linear_attn.in_proj_ba linear_attn.in_proj_qkvz
        linear_attn.out_proj self_attention.dense self_attention.query_key_value self_attn.dense
        self_attn.k_proj self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj self_attn.o_proj self_attn.out_proj
        self_attn.q_a_proj self_attn.q_b_proj self_attn.q_proj self_attn.qkv_proj self_attn.sinks self_attn.v_proj
    """,
    None: """
        mamba.A_log mamba.D mamba.conv1d mamba.dt_proj mamba.in_proj mamba.out_proj mamba.x_proj mixer.A_log
        mixer.D mixer.conv1d mixer.dt_proj mixer.in_proj mixer.out_proj mixer.x_proj
    """,
}

# And those outside the stacks that belong to the text decoder.
BESIDE = {
    "lm_head": "embed_out language_model.lm_head lm_head",
    "embedding": """
        backbone.embeddings embed_tokens embeddings.position_embeddings embeddings.token_type_embeddings
        embeddings.word_embeddings gpt_neox.embed_in language_model.model.embed_tokens
        model.decoder.embed_positions model.decoder.embed_tokens model.embed_tokens shared
        transformer.word_embeddings transformer.wpe transformer.wte
    """,
    "norm": """
        backbone.norm_f decoder.final_layer_norm embeddings.LayerNorm gpt_neox.final_layer_norm
        language_model.model.norm model.decoder.final_layer_norm model.decoder.layer_norm model.final_layernorm
        model.norm norm transformer.ln_f transformer.norm_f transformer.word_embeddings_layernorm
    """,
}


def of_table(name: str) -> Anatomy:
    return anatomy(tensor_infos(TABLES[name]["tensors"]))


def pattern(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", re.sub(r"\.(weight|bias)$", "", name))


def names_by_group(table: dict[str, str]) -> dict[str, str]:
    return {name: group for group, names in table.items() for name in names.split()}


def test_every_table_is_expected() -> None:
    """No architecture goes unchecked."""
    assert set(EXPECTED) == set(TABLES)


@pytest.mark.parametrize("name", EXPECTED)
def test_decoder(name: str) -> None:
    """Decoder, embedding, head and the other stacks of a real architecture."""
    found = of_table(name)
    prefix, layers, embedding, head = EXPECTED[name]
    assert found.decoder == Stack(prefix, layers)
    assert (found.embedding, found.head) == (embedding, head)
    assert {p: s.layers for p, s in found.stacks.items()} == {prefix: layers, **OTHER_STACKS.get(name, {})}


@pytest.mark.parametrize("name", EXPECTED)
def test_groups(name: str) -> None:
    """Every tensor of a real architecture is in the group that it belongs to, or in none."""
    found = of_table(name)
    within, beside = names_by_group(WITHIN), names_by_group(BESIDE)  # type: ignore[arg-type]
    for tensor in TABLES[name]["tensors"]:
        layer = found.layer_of(tensor)
        if layer:
            inside = tensor.removeprefix(f"{layer[0]}.{layer[1]}.")
            assert found.group_of(tensor) == within[pattern(inside)], tensor
            assert found.home_of(tensor) == layer[0]
        elif found.home_of(tensor) == EXPECTED[name][0]:
            assert found.group_of(tensor) == beside.get(pattern(tensor)), tensor
        else:
            assert pattern(tensor) not in beside, tensor


def test_layers_of_a_real_table() -> None:
    """Every tensor of a layer has the layer's index; deeper integers are experts."""
    found = of_table("mixtral")
    assert found.layer_of("model.layers.2.block_sparse_moe.experts.1.w2.weight") == ("model.layers", 2)
    assert found.layer_of("model.norm.weight") is None
    assert found.layer_of("no such tensor") is None
    assert found.group_of("no such tensor") is None


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava", "gemma3", "mllama", "llama4"])
def test_names_of_transformers_5(name: str) -> None:
    """The module names of transformers 5, `model.language_model` beside `model.visual`, mean the same."""
    prefix = EXPECTED[name][0].removesuffix("layers")

    def rename(tensor: str) -> str:
        if tensor.startswith(prefix):
            return f"model.language_model.{tensor.removeprefix(prefix)}"
        return "lm_head.weight" if tensor.endswith("lm_head.weight") else f"model.{tensor}"

    shapes = TABLES[name]["tensors"]
    old, new = of_table(name), anatomy(tensor_infos({rename(n): shape for n, shape in shapes.items()}))
    assert new.decoder == Stack("model.language_model.layers", EXPECTED[name][1])
    assert new.embedding == "model.language_model.embed_tokens.weight"
    assert new.head == (old.head and "lm_head.weight")
    for tensor in shapes:
        assert new.group_of(rename(tensor)) == old.group_of(tensor)
        assert (new.home_of(rename(tensor)) == new.decoder.prefix) == (old.home_of(tensor) == EXPECTED[name][0])


def layered(layers: int, names: dict[str, list[int]], prefix: str = "model.layers") -> dict[str, list[int]]:
    return {f"{prefix}.{i}.{name}": shape for i in range(layers) for name, shape in names.items()}


INTERNLM2 = {
    **layered(
        2,
        {
            "attention.wqkv.weight": [24, 16],
            "attention.wo.weight": [16, 16],
            "feed_forward.w1.weight": [40, 16],
            "attention_norm.weight": [16],
            "ffn_norm.weight": [16],
        },
    ),
    "model.tok_embeddings.weight": [96, 16],
    "model.norm.weight": [16],
    "output.weight": [96, 16],
}
CHATGLM = {
    **layered(
        2,
        {
            "self_attention.query_key_value.weight": [32, 16],
            "self_attention.query_key_value.bias": [32],
            "mlp.dense_h_to_4h.weight": [80, 16],
            "input_layernorm.weight": [16],
        },
        "transformer.encoder.layers",
    ),
    "transformer.embedding.word_embeddings.weight": [96, 16],
    "transformer.encoder.final_layernorm.weight": [16],
    "transformer.output_layer.weight": [96, 16],
    "transformer.rotary_pos_emb.inv_freq": [4],
}
DBRX = {
    **layered(
        2,
        {
            "norm_attn_norm.attn.Wqkv.weight": [32, 16],
            "norm_attn_norm.norm_1.weight": [16],
            "ffn.experts.mlp.w1": [160, 16],
            "ffn.router.layer.weight": [4, 16],
        },
        "transformer.blocks",
    ),
    "transformer.wte.weight": [96, 16],
    "lm_head.weight": [96, 16],
}
GPT2_OF_THE_HUB = {
    **layered(2, {"attn.bias": [1, 1, 64, 64], "attn.c_attn.weight": [16, 48], "ln_1.weight": [16]}, "h"),
    "wte.weight": [96, 16],
    "wpe.weight": [640, 16],
    "ln_f.weight": [16],
}
FALCON_40B = {
    **layered(2, {"mlp.dense_h_to_4h.weight": [64, 16], "ln_attn.weight": [16], "ln_mlp.bias": [16]}, "transformer.h"),
    "transformer.word_embeddings.weight": [96, 16],
}
NEMOTRON_H = {
    "backbone.embeddings.weight": [96, 16],
    "backbone.layers.0.mixer.in_proj.weight": [64, 16],
    "backbone.layers.0.norm.weight": [16],
    "backbone.layers.1.mixer.q_proj.weight": [16, 16],
    "backbone.layers.1.norm.weight": [16],
    "backbone.layers.2.mixer.up_proj.weight": [40, 16],
    "backbone.layers.2.norm.weight": [16],
}
COMMAND_R = {
    **layered(2, {"self_attn.q_norm.weight": [4, 4], "self_attn.q_proj.weight": [16, 16]}),
    "model.embed_tokens.weight": [96, 16],
}
OLD_LLAMA = {
    **layered(2, {"self_attn.q_proj.weight": [16, 16], "self_attn.rotary_emb.inv_freq": [4]}),
    "model.embed_tokens.weight": [96, 16],
}


@pytest.mark.parametrize(
    ("shapes", "decoder", "head", "groups"),
    [
        (INTERNLM2, "model.layers", "output.weight", {
            "model.layers.0.attention.wqkv.weight": "attention", "model.layers.1.attention.wo.weight": "attention",
            "model.layers.0.feed_forward.w1.weight": "mlp", "model.layers.0.attention_norm.weight": "norm",
            "model.layers.0.ffn_norm.weight": "norm", "model.tok_embeddings.weight": "embedding",
            "output.weight": "lm_head", "model.norm.weight": "norm"}),
        (CHATGLM, "transformer.encoder.layers", "transformer.output_layer.weight", {
            "transformer.encoder.layers.1.self_attention.query_key_value.bias": "attention",
            "transformer.embedding.word_embeddings.weight": "embedding",
            "transformer.encoder.final_layernorm.weight": "norm", "transformer.rotary_pos_emb.inv_freq": None}),
        (DBRX, "transformer.blocks", "lm_head.weight", {
            "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight": "attention",
            "transformer.blocks.0.norm_attn_norm.norm_1.weight": "norm",
            "transformer.blocks.1.ffn.experts.mlp.w1": "mlp", "transformer.blocks.1.ffn.router.layer.weight": "mlp"}),
        (GPT2_OF_THE_HUB, "h", None, {
            "h.0.attn.bias": None, "h.0.attn.c_attn.weight": "attention", "wte.weight": "embedding",
            "wpe.weight": "embedding", "ln_f.weight": "norm"}),
        (FALCON_40B, "transformer.h", None, {
            "transformer.h.0.ln_attn.weight": "norm", "transformer.h.0.ln_mlp.bias": "norm"}),
        (NEMOTRON_H, "backbone.layers", None, {
            "backbone.layers.0.mixer.in_proj.weight": None, "backbone.layers.1.mixer.q_proj.weight": "attention",
            "backbone.layers.2.mixer.up_proj.weight": "mlp"}),
        (COMMAND_R, "model.layers", None, {"model.layers.0.self_attn.q_norm.weight": "norm"}),
        (OLD_LLAMA, "model.layers", None, {"model.layers.0.self_attn.rotary_emb.inv_freq": None}),
    ],
    ids=["internlm2", "chatglm", "dbrx", "gpt2", "falcon-40b", "nemotron-h", "command-r", "old-llama"],
)  # fmt: skip
def test_further_names(
    shapes: dict[str, list[int]], decoder: str, head: str | None, groups: dict[str, str | None]
) -> None:
    """Names of checkpoints whose modules transformers does not have, or no longer writes."""
    found = anatomy(tensor_infos(shapes))
    assert found.decoder is not None
    assert (found.decoder.prefix, found.head) == (decoder, head)
    assert {name: found.group_of(name) for name in groups} == groups
    assert all(found.home_of(name) == decoder for name in groups)
    assert found.embedding is not None
    assert shapes[found.embedding] == [96, 16]


def test_layers_that_predict_further_tokens() -> None:
    """DeepSeek-V3's last layer, with its own embedding and head, does not count: `first 25%` must mean the model's."""
    shapes = dict(TABLES["deepseek_v3"]["tensors"])
    extra = {name.replace("layers.2.", "layers.3."): s for name, s in shapes.items() if "layers.2." in name}
    extra |= {
        "model.layers.3.embed_tokens.weight": [96, 16],
        "model.layers.3.eh_proj.weight": [16, 32],
        "model.layers.3.enorm.weight": [16],
        "model.layers.3.shared_head.head.weight": [96, 16],
    }
    found = anatomy(tensor_infos(shapes | extra))
    assert found.decoder == found.stacks["model.layers"] == Stack("model.layers", 3)
    assert (found.embedding, found.head) == ("model.embed_tokens.weight", "lm_head.weight")
    for name in extra:
        assert found.layer_of(name) is None
        assert found.group_of(name) is None


def test_separate_predictor_stack() -> None:
    """Qwen3-Next's `mtp.layers` is a stack of its own, not the decoder, and its norm is not the decoder's."""
    shapes = dict(TABLES["qwen3_next"]["tensors"])
    extra = {f"mtp.{n.removeprefix('model.').replace('2', '0', 1)}": s for n, s in shapes.items() if "layers.2." in n}
    found = anatomy(tensor_infos(extra | {"mtp.fc.weight": [16, 32], "mtp.norm.weight": [16]} | shapes))
    assert found.decoder == Stack("model.layers", 3)
    assert found.stacks["mtp.layers"] == Stack("mtp.layers", 1)
    assert found.home_of("mtp.norm.weight") == "mtp.layers"
    assert found.home_of("lm_head.weight") == "model.layers"


def test_omni_model_has_one_text_decoder() -> None:
    """Of two language models with embeddings and heads, the larger thinks and the other talks."""
    small = {
        n.replace("model.", "talker.model.", 1): [k // 2 for k in s] for n, s in TABLES["qwen2"]["tensors"].items()
    }
    small["talker.codec_head.weight"] = small.pop("lm_head.weight")
    large = {f"thinker.{n}": s for n, s in TABLES["qwen2"]["tensors"].items()}
    found = anatomy(tensor_infos(small | large))
    assert found.decoder == Stack("thinker.model.layers", 3)
    assert (found.embedding, found.head) == ("thinker.model.embed_tokens.weight", "thinker.lm_head.weight")
    assert found.home_of("talker.model.norm.weight") == "talker.model.layers"


def stack(prefix: str, width: int = 16, layers: int = 2) -> dict[str, list[int]]:
    return layered(layers, {"mlp.up_proj.weight": [2 * width, width], "norm.weight": [width]}, prefix)


@pytest.mark.parametrize(
    ("beside", "other", "embedding"),
    [
        (stack("b.layers", width=64, layers=9), "b.layers", "embed_tokens.weight"),
        (stack("a.encoder.layers", layers=9), "a.encoder.layers", "a.embed_tokens.weight"),
        (stack("b.layers", layers=9), "b.layers", "a.embed_tokens.weight"),
        (stack("b.layers", layers=1), "b.layers", "embed_tokens.weight"),
        (stack("a.visual.layers", layers=9), "a.visual.layers", "a.embed_tokens.weight"),
    ],
    ids=["width", "encoder", "proximity", "size", "tower"],
)
def test_why_a_stack_is_the_decoder(beside: dict[str, list[int]], other: str, embedding: str) -> None:
    """Each reason decides by itself against all that come after it."""
    shapes = beside | stack("a.layers") | {embedding: [96, 16]}
    for order in (shapes, dict(reversed(shapes.items()))):
        found = anatomy(tensor_infos(order))
        assert set(found.stacks) == {"a.layers", other}
        assert found.decoder == Stack("a.layers", 2)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.embed_tokens_per_layer.weight", "model.embed_tokens.weight"),
        ("model.position_embedding.weight", "model.embedding.weight"),
        ("visual.word_embeddings.weight", "model.embedding.weight"),
    ],
)
def test_which_embedding_is_that_of_tokens(wrong: str, right: str) -> None:
    """Its name decides before its size does, and other towers' do not count."""
    found = anatomy(tensor_infos(stack("model.layers") | {wrong: [500, 16], right: [96, 16]}))
    assert found.embedding == right


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("talker.lm_head.weight", "lm_head.weight"),
        ("draft.lm_head.weight", "model.lm_head.weight"),
        ("output.weight", "lm_head.weight"),
    ],
)
def test_which_head_is_the_decoders(wrong: str, right: str) -> None:
    """That of the text decoder, by name before shape, not another tower's that comes first."""
    shapes = stack("model.layers") | {"model.embed_tokens.weight": [96, 16], wrong: [96, 16], right: [96, 16]}
    assert anatomy(tensor_infos(shapes)).head == right


def test_a_projector_without_its_tower_is_nobodys() -> None:
    """The norm of a projector does not become the decoder's where the decoder is the only stack."""
    found = anatomy(tensor_infos(stack("model.layers") | {"model.mm_projector.norm.weight": [16]}))
    assert found.home_of("model.mm_projector.norm.weight") is None


@pytest.mark.parametrize(
    "shapes",
    [
        {"projector.0.weight": [4, 4], "projector.2.weight": [4, 4]},
        {"projector.0.weight": [4, 4], "projector.1.weight": [4, 4]},
        {"blocks.1.a.weight": [4, 4], "blocks.2.a.weight": [4, 4]},
        {"blocks.0.a.weight": [4, 4], "blocks.2.a.weight": [4, 4]},
        {"blocks.0.a.weight": [4, 4], "blocks.1.a.weight": [4]},
        {"blocks.00.a.weight": [4, 4], "blocks.01.a.weight": [4, 4]},
        {"blocks.\u0660.a.weight": [4, 4]},
        {f"blocks.{10**30}.a.weight": [4, 4]},
        {"weight": [4, 4], "": [4, 4], ".": [4]},
    ],
)
def test_what_is_no_stack(shapes: dict[str, list[int]]) -> None:
    """Sequentials, gaps, layers without a matrix, and numbers that are no plain index."""
    found = anatomy(tensor_infos(shapes))
    assert found.stacks == {}
    assert found.embedding is None


def test_vision_model_has_no_text_decoder() -> None:
    """A tower alone is a stack that has to be named."""
    shapes = {n: s for n, s in TABLES["llava"]["tensors"].items() if n.startswith("vision_tower")}
    shapes["vision_tower.word_embeddings.weight"] = [96, 24]
    found = anatomy(tensor_infos(shapes))
    assert set(found.stacks) == {"vision_tower.encoder.layers"}
    assert (found.decoder, found.embedding, found.head) == (None, None, None)


def test_pure() -> None:
    """Two calls agree, whatever the order of the tensors; `tied` is passed through."""
    infos = tensor_infos({name: array.shape for name, array in llama_arrays().items()})
    found = anatomy(infos)
    turned = anatomy(dict(reversed(infos.items())))
    assert not found.tied
    assert anatomy(infos, tied=True).tied
    assert (found.decoder, found.embedding, found.head) == (turned.decoder, turned.embedding, turned.head)
    assert all(found.group_of(name) == turned.group_of(name) for name in infos)


components = st.sampled_from(["a", "0", "1", "2", "weight", "attn", "vision", "embed", "norm", ""])


@given(
    st.dictionaries(
        st.lists(components, max_size=5).map(".".join),
        st.lists(st.integers(0, 4), max_size=4),
    )
)  # fmt: skip
def test_any_names(shapes: dict[str, list[int]]) -> None:
    """Whatever the names: no error; layers lie within their stack; the decoder is a stack."""
    found = anatomy(tensor_infos(shapes))
    assert found.decoder is None or found.stacks[found.decoder.prefix] == found.decoder
    for name in shapes:
        layer = found.layer_of(name)
        if layer:
            assert f".{name}.".startswith(f".{layer[0]}.{layer[1]}." if layer[0] else f".{layer[1]}.")
            assert 0 <= layer[1] < found.stacks[layer[0]].layers
        assert found.home_of(name) in {None, *found.stacks}
