"""The main job on a real language model: SmolLM2-135M and a twin whose singular vectors were turned."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.pairs import read
from tests.smollm2 import Pair

pytestmark = pytest.mark.real

PROSE = (
    "Astronomy is one of the oldest of the natural sciences. Early observers in many cultures watched the movement "
    "of the planets and kept careful records, which later scholars used to predict eclipses and to build calendars."
)
QUESTION = [{"role": "user", "content": "What colour is the sky?"}]
MATRIX = "model.layers.3.mlp.down_proj.weight"


@dataclass(frozen=True)
class Edited:
    """What a recipe made of the pair, as transformers loads it; the model was turned into float32 afterwards."""

    out: Path
    report: dict[str, Any]
    dtype: torch.dtype
    model: PreTrainedModel


def surgery(*arguments: object) -> str:
    """Run the command line as a user does and return its standard output."""
    command = [sys.executable, "-m", "surgery.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["restore-top-20pct", "restore-top-20pct-rotate", "wise-ft"])
def edited(request: pytest.FixtureRequest, smollm2: Pair, tmp_path_factory: pytest.TempPathFactory) -> Edited:
    """The pair edited by each of the recipes in turn."""
    out = tmp_path_factory.mktemp("edited") / request.param
    surgery("apply", request.param, smollm2.base, smollm2.tuned, out)
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    return Edited(out, report, model.dtype, model.float())


@pytest.fixture(scope="module")
def expected(smollm2: Pair) -> torch.Tensor:
    """The base's log-probabilities after every token of the prose."""
    return log_probabilities(AutoModelForCausalLM.from_pretrained(smollm2.base).float(), smollm2.base)


@pytest.fixture(scope="module")
def damage(smollm2: Pair, expected: torch.Tensor) -> float:
    """How far the twin is from the base, in nats a token."""
    model = AutoModelForCausalLM.from_pretrained(smollm2.tuned).float()
    return divergence(expected, log_probabilities(model, smollm2.tuned))


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, directory: Path) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] of the prose, with the tokenizer of `directory`."""
    tokens = AutoTokenizer.from_pretrained(directory)(PROSE, return_tensors="pt").input_ids
    return model(tokens).logits[0].log_softmax(-1)


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence KL(p || q) over the tokens, in nats, of log-probabilities."""
    return (p.exp() * (p - q)).sum(-1).mean().item()


def test_loads_whole_in_its_dtype(edited: Edited) -> None:
    """transformers finds every weight and no other, of the right shape, in the dtype that the config names."""
    assert not any(edited.report.values()), edited.report
    assert edited.dtype == torch.bfloat16
    assert json.loads((edited.out / "config.json").read_text())["dtype"] == "bfloat16"
    assert all(tensor.dtype == torch.bfloat16 for tensor in read(edited.out).values())


def test_tied_head_is_stored_once(edited: Edited) -> None:
    """The output head stays the embedding itself: it is in no file, and loads as the same parameter."""
    assert "lm_head.weight" not in read(edited.out)
    assert edited.model.get_output_embeddings().weight is edited.model.get_input_embeddings().weight


def test_shards_stay_those_of_start(edited: Edited, smollm2: Pair) -> None:
    """The output has the files of `start`: the same shards with the same tensors, and the same index."""
    shards = sorted(path.name for path in smollm2.tuned.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(path.name for path in edited.out.glob("*.safetensors")) == shards
    index = "model.safetensors.index.json"
    maps = [json.loads((directory / index).read_text())["weight_map"] for directory in (edited.out, smollm2.tuned)]
    assert maps[0] == maps[1]


def test_edits_what_the_recipe_selects(edited: Edited, smollm2: Pair) -> None:
    """Every matrix of the layers differs from the twin's; embeddings and norms keep their bytes in all the recipes."""
    result, tuned = read(edited.out), read(smollm2.tuned)
    assert result.keys() == tuned.keys()
    changed = {name for name, tensor in result.items() if not torch.equal(tensor, tuned[name])}
    assert changed == {name for name, tensor in tuned.items() if ".layers." in name and tensor.ndim == 2}


def test_comes_back_towards_the_base(edited: Edited, expected: torch.Tensor, damage: float) -> None:
    """At least half of the divergence from the base is undone (measured: .33, .23 and .25 of .024 nats are left)."""
    left = divergence(expected, log_probabilities(edited.model, edited.out))
    assert damage > 0.005
    assert left < damage / 2


def test_answers_a_question(edited: Edited) -> None:
    """With the tokenizer and chat template that lie beside the weights, the model still talks sense."""
    tokenizer = AutoTokenizer.from_pretrained(edited.out)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = edited.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :])
    assert "blue" in answer


def test_verifies(edited: Edited) -> None:
    """`surgery verify` finds all 272 tensors as the manifest says."""
    assert json.loads(surgery("verify", edited.out, "--json"))["tensors"] == 272


@pytest.mark.parametrize("edited", ["restore-top-20pct"], indirect=True)
def test_is_the_published_formula(edited: Edited, smollm2: Pair) -> None:
    """U_b,h S_h V_b,h^T + the rest of W, h = 20 %: as full decompositions in float64 give it, but for one rounding."""
    W, b = (read(directory)[MATRIX].double() for directory in (smollm2.tuned, smollm2.base))
    (U, S, Vh), (Ub, _, Vbh) = (torch.linalg.svd(matrix, full_matrices=False) for matrix in (W, b))
    h = 115  # floor(576 / 5 + 1/2)
    reference = (Ub[:, :h] * S[:h]) @ Vbh[:h] + (U[:, h:] * S[h:]) @ Vh[h:]
    ulp = reference.abs() * 2.0**-7  # bfloat16 keeps 8 bits: neighbours are at most this far apart
    assert ((read(edited.out)[MATRIX].double() - reference).abs() <= ulp + 1e-6 * reference.abs().max()).all()
