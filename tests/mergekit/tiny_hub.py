"""Tiny models of random weights in a cache of the Hugging Face hub, by the ids that files of others name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from tests.adapters.peft import factors, merged, write_adapter
from tests.pairs import llama, near, write
from tests.tiny_tokenizers import save, words

WORDS = [f"word{i}" for i in range(18)]
WIDTH = 8
MOST_ROWS = 24


class TinyHub:
    """The hub's cache, offline, and the working directory: a name of one word or with a dot before it is a path there.

    All models that are asked for come from one of random weights, in float32, with `layers` layers.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "llama", layers: int = 5) -> None:
        self.cache, self.here = root / "hub", root / "here"
        self.here.mkdir()
        monkeypatch.chdir(self.here)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        self._kind, self._layers = kind, layers
        self._made: dict[str, dict[str, Tensor]] = {}

    def model(self, name: str, special: Sequence[str] = ()) -> dict[str, Tensor]:
        """The float64 weights of a model, made now unless it is there, with the adapter after a `+` merged into it.

        `special` are tokens that it has after the words that all have.
        """
        base, _, adapter = name.partition("+")
        if base not in self._made:
            self._made[base] = self._write(base, special)
        tensors = {name: tensor.double() for name, tensor in self._made[base].items()}
        if not adapter:
            return tensors
        made = {key: 0.1 * tensor for key, tensor in factors(self._made[base], seed=_seed(adapter)).items()}
        write_adapter(self._place(adapter), made)
        return merged(tensors, made)

    def _write(self, name: str, special: Sequence[str]) -> dict[str, Tensor]:
        rows = len(WORDS) + len(special)
        made = _gpt2(rows, self._layers) if self._kind == "gpt2" else _llama(self._kind, rows, self._layers)
        config, tensors = made
        tensors = near(tensors, seed=_seed(name))
        save(words(WORDS, special), write(self._place(name), tensors, config=config))
        return tensors

    def _place(self, name: str) -> Path:
        if name.startswith(".") or ("/" not in name and name != "gpt2"):
            return self.here / name
        repository = self.cache / f"models--{name.replace('/', '--')}"
        commit = hashlib.sha1(name.encode()).hexdigest()
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(commit)
        return repository / "snapshots" / commit


def _seed(name: str) -> int:
    return int(hashlib.sha1(name.encode()).hexdigest()[:8], 16)


def _llama(kind: str, rows: int, layers: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a Llama or Mistral model; the weights are the same for all numbers of rows."""
    config = {
        "architectures": [f"{kind.title()}ForCausalLM"],
        "model_type": kind,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": WIDTH // 2,
        "vocab_size": rows,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    tensors = llama(0, torch.float32, layers=layers, width=WIDTH, vocabulary=MOST_ROWS)
    return config, {name: tensor[:rows] if len(tensor) == MOST_ROWS else tensor for name, tensor in tensors.items()}


def _gpt2(rows: int, layers: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a GPT-2, whose head is its embedding."""
    config = GPT2Config(vocab_size=rows, n_embd=WIDTH, n_layer=layers, n_head=2, n_positions=16)
    config.architectures = ["GPT2LMHeadModel"]
    tensors = {name: tensor.clone() for name, tensor in GPT2LMHeadModel(config).state_dict().items()}
    del tensors["lm_head.weight"]
    return config.to_dict(), tensors
