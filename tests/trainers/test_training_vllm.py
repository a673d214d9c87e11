"""What the trainers make, in vLLM: a real model by the small configurations, and rollouts of a tiny one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import surgery
from tests.smollm2 import Pair
from tests.tiny_models import save_tiny
from tests.vllm_environment import WITHIN

pytestmark = pytest.mark.vllm


def run(*arguments: object) -> Any:
    """What a command prints as JSON, in a process of its own: vLLM warns, and warnings are errors here."""
    command = [sys.executable, "-m", "surgery", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | WITHIN)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.real
def test_small_runs_of_a_real_model(smollm2: Pair, tmp_path: Path) -> None:
    """Some steps of fine-tuning and an update of PPO give checkpoints that vLLM answers with and `apply` edits."""
    sft, ppo = tmp_path / "sft" / "final", tmp_path / "ppo" / "final"
    shorter = ["--set", "held_out.n=4"]
    report = run("train", "sft", "sft-small", "--model", smollm2.base, "--out", sft.parent, *shorter)
    shorter = ["--set", "episodes=4", "--set", "epochs=1", "--set", "success.n=2"]
    run("train", "ppo", "ppo-small", "--model", sft, "--out", ppo.parent, *shorter)
    first, last = report["checkpoints"][0], report["checkpoints"][-1]
    assert last["losses"]["id"] < first["losses"]["id"] < 1  # the base has .98
    assert (sft.parent / "inter-sft" / "training.json").exists()
    edited, averaged = tmp_path / "edited", tmp_path / "averaged"
    surgery.apply("restore-top-20pct-rotate", [smollm2.base, sft], edited)
    surgery.apply("wise-ft", [smollm2.base, ppo], averaged)
    few = ["--n", 2, "--attempts", 1, "--max-tokens", 16, "--split", "id", "--part", "validation", "--loss"]
    scored = run(
        "eval", "general_points", sft, ppo, edited, averaged, *few, "--out", tmp_path / "r", "--engine", "vllm"
    )
    losses = [model["scores"]["id"]["loss_per_token"]["value"] for model in scored["models"]]
    assert len(losses) == 4
    assert all(0 < loss < 1.2 for loss in losses)


def test_rollouts_by_vllm(tmp_path: Path) -> None:
    """PPO plays by vLLM with the weights of each update, first the reference's, then those of the last update.

    Drawn from the policy, log pi - log pi_ref has the mean KL(pi || pi_ref), which is positive; drawn from the weights
    before, it would be -KL(pi_ref || pi).
    """
    config = {
        "model": str(save_tiny(tmp_path / "tiny", tied=True)),
        "out": str(tmp_path / "out"),
        "data": {"task": "general_points", "n": 6},
        "device": "cpu",
        "attempts": 2,
        "updates": 2,
        "episodes": 4,
        "epochs": 1,
        "kl": 0.01,
        "rollout": {"engine": "vllm", "max_tokens": 12},
        "success": {"every": 1, "n": 4},
        "optimizer": {"learning_rate": 1e-2, "max_grad_norm": 1.0},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    run("train", "ppo", tmp_path / "config.yaml")
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["reference_kl"] == pytest.approx(0, abs=1e-3)
    assert rows[2]["reference_kl"] > 1
    assert all(row["ratio_mean"] == pytest.approx(1, abs=1e-3) for row in rows[1:])
    assert not (tmp_path / "out" / "resume").exists()
