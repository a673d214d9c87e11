"""Models whose tokens differ in number and order, for files of mergekit that say whose tokens the output has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.pairs import LLAMA_CONFIG, llama, write
from tests.tiny_tokenizers import save, words

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZERS = {
    "base": words(["?", "a", "b", "c"], ["<pad>"]),
    "sft": words(["?", "b", "a", "d"], ["<end>"]),
    "math": words(["?", "c", "a", "e"], ["<pad>"]),
    "code": words(["?", "d", "a"], ["<end>"]),
}
TASK_ARITHMETIC = """\
models:
  - {model: MODELS/sft, parameters: {weight: 0.3}}
  - {model: MODELS/math, parameters: {weight: 0.5}}
base_model: MODELS/base
merge_method: task_arithmetic
"""


def write_models(root: Path, names: Sequence[str], layers: int, **padding: int) -> Path:
    """Write these of the models, with so many layers and rows of `padding`; `rope_theta` tells their numbers."""
    for seed, name in enumerate(names):
        tokenizer = TOKENIZERS[name]
        rows = tokenizer.get_vocab_size() + padding.get(name, 0)
        config = {**LLAMA_CONFIG, "vocab_size": rows, "num_hidden_layers": layers, "rope_theta": seed}
        write(root / name, llama(seed=seed, layers=layers, vocabulary=rows, dtype=torch.float32), config=config)
        save(tokenizer, root / name)
    return root
