"""Tiny language models with tokenizer and chat template, which transformers and vLLM load like any other."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<end>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% if message.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A token for each printable ASCII character, and the special ones."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *string.printable])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", extra_special_tokens=SPECIAL[2:]
    )
    made.chat_template = chat_template
    return made


def save_tiny(
    directory: Path,
    seed: int = 0,
    tied: bool = False,
    context: int = 1024,
    chat_template: str | None = TEMPLATE,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a Llama of random weights: hidden 64, two layers, two heads of 32 (vLLM's smallest on a CPU)."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(string.printable),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,  # random weights of the usual size say one character for ever
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(directory)
    tokenizer(chat_template).save_pretrained(directory)
    return directory
