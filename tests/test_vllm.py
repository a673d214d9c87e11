"""A merged checkpoint in a real vLLM engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import surgery
from tests import vllm_greedy
from tests.smollm2 import Pair
from tests.vllm_environment import WITHIN

pytestmark = pytest.mark.vllm

CONVERSATIONS = [
    [{"role": "user", "content": question}]
    for question in ("What is the capital of France?", "What colour is the sky?", "Name three fruits.")
]


@pytest.fixture(scope="module")
def merged(smollm2: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 and its twin, merged by the published recipe."""
    out = tmp_path_factory.mktemp("merged") / "out"
    surgery.apply("restore-top-20pct", [smollm2.base, smollm2.tuned], out)
    return out


def by_vllm(directory: Path) -> list[list[int]]:
    """Greedy answers of an engine in a process of its own: it changes warnings, signals and environment at will."""
    done = subprocess.run(
        [sys.executable, vllm_greedy.__file__, str(directory)],
        input=json.dumps(CONVERSATIONS),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | WITHIN | {"VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stderr
    answers: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def by_transformers(directory: Path) -> list[list[int]]:
    """Greedy answers of the plain implementation, in float32 as there."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    answers = []
    for messages in CONVERSATIONS:
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**prompt, max_new_tokens=vllm_greedy.NEW_TOKENS, do_sample=False)
        answers.append(tokens[0, prompt["input_ids"].shape[1] :].tolist())
    return answers


def test_merged_checkpoint_answers_as_in_transformers(merged: Path) -> None:
    """vLLM loads the output, template and tokenizer included, and chooses the same tokens as transformers."""
    assert by_vllm(merged) == by_transformers(merged)
