"""The whole job on a real model: `surgery eval` with vLLM, twice, and the same answers from transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.smollm2 import Pair
from tests.vllm_environment import SEPARATE

pytestmark = [pytest.mark.vllm, pytest.mark.real]

HANDS = 2
ANSWERS = ["--n", str(HANDS), "--attempts", "2", "--max-tokens", "32"]
# float32, where rounding is too small to turn the choice of a token between two implementations
EXACT = ["--engine-option", "dtype=float32"]
AGREE = 0.95  # of the answers; one in twenty may still meet two tokens that are nearly as likely


def surgery(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "surgery"), *map(str, arguments)],
        capture_output=True, text=True, check=False, env=os.environ | SEPARATE,
    )  # fmt: skip


def evaluate(engine: str, pair: Pair, out: Path) -> tuple[dict[str, Any], str]:
    """Score the pair; the report and what was said on the way."""
    done = surgery(
        "eval", "general_points", pair.base, pair.tuned, "--engine", engine, "--out", out, "--loss", "--json",
        *ANSWERS, *EXACT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report, done.stderr


def answers(out: Path, file: str) -> dict[tuple[str, ...], Any]:
    """By model, split and index: the completions, or the loss."""
    found = {}
    for path in out.rglob(file):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found[Path(row["model"]).name, row["id"]] = row.get("completions", row.get("nll"))
    return found


@pytest.fixture(scope="module")
def by_vllm(smollm2: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one run with vLLM."""
    out = tmp_path_factory.mktemp("vllm")
    report, said = evaluate("vllm", smollm2, out)
    assert [row["generated"] for row in report["models"]] == [4 * HANDS, 4 * HANDS]
    assert "Traceback" not in said
    return out


def test_the_second_time_nothing_is_generated(by_vllm: Path, smollm2: Pair) -> None:
    """The same command again: the same scores, no engine, nothing new."""
    before = {path: path.read_bytes() for path in by_vllm.rglob("*.jsonl")}
    (first,) = by_vllm.rglob("report.json")
    scores = [row["scores"] for row in json.loads(first.read_text())["models"]]
    report, _ = evaluate("vllm", smollm2, by_vllm)
    assert [row["generated"] for row in report["models"]] == [0, 0]
    assert [row["reused"] for row in report["models"]] == [4 * HANDS, 4 * HANDS]
    assert [row["scores"] for row in report["models"]] == scores
    assert {path: path.read_bytes() for path in by_vllm.rglob("*.jsonl")} == before


def test_transformers_gives_the_same(by_vllm: Path, smollm2: Pair, tmp_path: Path) -> None:
    """Both engines give each checkpoint, hot-swapped or not, the same greedy answers and the same losses."""
    evaluate("transformers", smollm2, tmp_path)
    ours, theirs = answers(tmp_path, "samples.jsonl"), answers(by_vllm, "samples.jsonl")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 4 * HANDS
    assert sum(ours[key] == theirs[key] for key in ours) >= AGREE * len(ours)
    assert any(ours["base", key] != ours["tuned", key] for _, key in ours)  # the second model is another
    losses, other = answers(tmp_path, "losses.jsonl"), answers(by_vllm, "losses.jsonl")
    assert losses == pytest.approx(other, rel=1e-4)
