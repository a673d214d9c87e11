"""Writes tests/data/architectures.json: the tensor names and shapes of tiny models of real architectures.

    python tests/make_architectures.py SCRATCH

Each model is made from its transformers configuration with random weights and saved by `save_pretrained`
under SCRATCH, so the names are those of files on disk, not of modules. Needs torch and transformers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import transformers as t
from safetensors import safe_open

TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
HEAD_DIM: dict[str, Any] = {"head_dim": 8}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
MLA: dict[str, Any] = {
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
}


def models() -> dict[str, Any]:
    """The models, each a function of no argument."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    return {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT)),
        "llama_tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=True)),
        "llama_bare": lambda: t.LlamaModel(t.LlamaConfig(**TEXT)),
        "llama_classifier": lambda: t.LlamaForSequenceClassification(t.LlamaConfig(**TEXT)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**TEXT)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**TEXT)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**TEXT, **HEAD_DIM)),
        "qwen3_next": lambda: t.Qwen3NextForCausalLM(
            t.Qwen3NextConfig(
                **TEXT,
                **HEAD_DIM,
                **experts,
                shared_expert_intermediate_size=12,
                linear_num_value_heads=2,
                linear_num_key_heads=2,
                linear_key_head_dim=4,
                linear_value_head_dim=4,
                layer_types=["linear_attention", "linear_attention", "full_attention"],
            )
        ),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**TEXT, num_local_experts=3)),
        "qwen3_moe": lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**TEXT, **HEAD_DIM, **experts)),
        "qwen2_moe": lambda: t.Qwen2MoeForCausalLM(
            t.Qwen2MoeConfig(**TEXT, **experts, shared_expert_intermediate_size=12)
        ),
        "deepseek_v3": lambda: t.DeepseekV3ForCausalLM(
            t.DeepseekV3Config(
                **{**TEXT, "num_key_value_heads": 4},
                **MLA,
                moe_intermediate_size=12,
                n_routed_experts=4,
                n_group=1,
                topk_group=1,
                num_experts_per_tok=2,
                first_k_dense_replace=1,
            )
        ),
        "gpt_oss": lambda: t.GptOssForCausalLM(t.GptOssConfig(**TEXT, **HEAD_DIM, num_local_experts=4)),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**TEXT)),
        "phi": lambda: t.PhiForCausalLM(t.PhiConfig(**{**TEXT, "num_key_value_heads": 4})),
        "gpt_neox": lambda: t.GPTNeoXForCausalLM(
            t.GPTNeoXConfig(**{k: v for k, v in TEXT.items() if k != "num_key_value_heads"})
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=96, n_embd=16, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1)
        ),
        "gptj": lambda: t.GPTJForCausalLM(
            t.GPTJConfig(
                vocab_size=96,
                n_embd=16,
                n_layer=3,
                n_head=4,
                n_positions=64,
                rotary_dim=4,
                bos_token_id=0,
                eos_token_id=1,
            )
        ),
        "opt": lambda: t.OPTForCausalLM(
            t.OPTConfig(
                vocab_size=96,
                hidden_size=16,
                ffn_dim=40,
                num_hidden_layers=3,
                num_attention_heads=4,
                word_embed_proj_dim=16,
                max_position_embeddings=64,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=2,
            )
        ),
        "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=96, hidden_size=16, n_layer=3, n_head=4)),
        "falcon": lambda: t.FalconForCausalLM(
            t.FalconConfig(
                vocab_size=96,
                hidden_size=16,
                num_hidden_layers=3,
                num_attention_heads=4,
                bos_token_id=0,
                eos_token_id=1,
            )
        ),
        "mpt": lambda: t.MptForCausalLM(t.MptConfig(vocab_size=96, d_model=16, n_layers=3, n_heads=4, max_seq_len=64)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**TEXT, **HEAD_DIM)),
        "gemma3": lambda: t.Gemma3ForConditionalGeneration(
            t.Gemma3Config(text_config={**TEXT, **HEAD_DIM}, vision_config=VISION, mm_tokens_per_image=4)
        ),
        "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**TEXT)),
        "starcoder2": lambda: t.Starcoder2ForCausalLM(t.Starcoder2Config(**TEXT)),
        "cohere": lambda: t.CohereForCausalLM(t.CohereConfig(**TEXT)),
        "mamba": lambda: t.MambaForCausalLM(
            t.MambaConfig(
                vocab_size=96, hidden_size=16, state_size=4, num_hidden_layers=3, bos_token_id=0, eos_token_id=1
            )
        ),
        "jamba": lambda: t.JambaForCausalLM(
            t.JambaConfig(
                **{**TEXT, "num_hidden_layers": 4},
                num_experts=2,
                attn_layer_period=2,
                attn_layer_offset=1,
                expert_layer_period=2,
                expert_layer_offset=1,
                mamba_d_state=4,
                mamba_dt_rank=4,
                use_mamba_kernels=False,
            )
        ),
        "mllama": lambda: t.MllamaForConditionalGeneration(
            t.MllamaConfig(
                text_config={**TEXT, "num_hidden_layers": 4, "cross_attention_layers": [1, 3]},
                vision_config={
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 3,
                    "num_global_layers": 2,
                    "attention_heads": 2,
                    "image_size": 16,
                    "patch_size": 8,
                    "vision_output_dim": 48,
                    "intermediate_layers_indices": [0, 1],
                    "max_num_tiles": 2,
                    "supported_aspect_ratios": [[1, 1], [1, 2]],
                },
            )
        ),
        "qwen2_vl": lambda: t.Qwen2VLForConditionalGeneration(
            t.Qwen2VLConfig(
                text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0]}},
                vision_config={"depth": 2, "embed_dim": 24, "hidden_size": 16, "num_heads": 2, "patch_size": 4},
            )
        ),
        "qwen2_5_vl": lambda: t.Qwen2_5_VLForConditionalGeneration(
            t.Qwen2_5_VLConfig(
                text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0]}},
                vision_config={
                    "depth": 2,
                    "hidden_size": 24,
                    "out_hidden_size": 16,
                    "intermediate_size": 40,
                    "num_heads": 2,
                    "patch_size": 4,
                },
            )
        ),
        "llava": lambda: t.LlavaForConditionalGeneration(
            t.LlavaConfig(
                text_config=t.LlamaConfig(**TEXT), vision_config=t.CLIPVisionConfig(**VISION, projection_dim=16)
            )
        ),
        "llama4": lambda: t.Llama4ForConditionalGeneration(
            t.Llama4Config(
                text_config={
                    **TEXT,
                    **HEAD_DIM,
                    "intermediate_size_mlp": 40,
                    "num_local_experts": 3,
                    "num_experts_per_tok": 1,
                    "interleave_moe_layer_step": 2,
                },
                vision_config={
                    "hidden_size": 24,
                    "intermediate_size": 96,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "image_size": 16,
                    "patch_size": 8,
                    "vision_output_dim": 20,
                    "projector_input_dim": 20,
                    "projector_output_dim": 20,
                },
            )
        ),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=96, d_model=16, d_kv=4, d_ff=40, num_layers=3, num_heads=4)
        ),
        "whisper": lambda: t.WhisperForConditionalGeneration(
            t.WhisperConfig(
                vocab_size=96,
                d_model=16,
                encoder_layers=2,
                decoder_layers=3,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=40,
                decoder_ffn_dim=40,
                num_mel_bins=8,
                max_source_positions=16,
                max_target_positions=16,
                pad_token_id=2,
                bos_token_id=0,
                eos_token_id=1,
                decoder_start_token_id=0,
                suppress_tokens=None,
                begin_suppress_tokens=None,
            )
        ),
        "bert": lambda: t.BertModel(
            t.BertConfig(
                vocab_size=96,
                hidden_size=16,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=40,
                max_position_embeddings=64,
            )
        ),
    }


def table(directory: Path) -> dict[str, Any]:
    """Names and shapes of the one file in the directory, with what its config says about tying."""
    config = json.loads((directory / "config.json").read_text())
    with safe_open(directory / "model.safetensors", "numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    nested = config.get("text_config")
    kept = {key: config[key] for key in ("architectures", "tie_word_embeddings") if key in config}
    if isinstance(nested, dict) and "tie_word_embeddings" in nested:
        kept["text_config"] = {"tie_word_embeddings": nested["tie_word_embeddings"]}
    return {"config": kept, "tensors": shapes}


def main(scratch: Path) -> None:
    """Make, save and tabulate every model."""
    tables = {}
    for name, make in models().items():
        make().save_pretrained(scratch / name)
        tables[name] = table(scratch / name)
    out = Path(__file__).parent / "data" / "architectures.json"
    out.parent.mkdir(exist_ok=True)
    lines = [f"{json.dumps(name)}:{json.dumps(value, separators=(',', ':'))}" for name, value in tables.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
