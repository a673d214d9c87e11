"""The command line on real models and engines: SmolLM2 with transformers, tiny models with vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import surgery
from tests.evalkit.sweeps.conftest import Pair
from tests.smollm2 import Pair as Smollm2
from tests.tiny_models import save_tiny
from tests.vllm_environment import WITHIN

SPEC: dict[str, Any] = {
    "name": "real",
    "models": ["base", "sft"],
    "variants": [{"recipe": "restore-top-20pct-rotate", "grid": {"head": ["10%"]}}, {"recipe": "reset-first-quarter"}],
    "averages": [0.5],
    "evaluation": {"task": "general_points", "n": 4, "attempts": 1, "max_tokens": 8},
    "keep": "all",
}
LOSSES = {**SPEC, "objective": {"measure": "loss_per_token"}, "keep": "best"}
SURGERY = str(Path(sys.executable).parent / "surgery")
PLACES = ["reset-first-quarter", "restore-top-20pct-rotate-head-10", "wise-ft-alpha-0_5"]


def sweep(place: Path, spec: dict[str, Any], models: list[Path]) -> dict[str, Any]:
    """The result of `surgery sweep` with transformers, in a process of its own."""
    with (place / "sweep.yaml").open("w") as file:
        YAML().dump(spec, file)
    done = subprocess.run(
        [SURGERY, "sweep", "sweep.yaml", *map(str, models), "--json", "--engine", "transformers"],
        cwd=place, capture_output=True, text=True, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_tiny_models_with_transformers(pair: Pair, tmp_path: Path) -> None:
    """Rows, page, figure, and checkpoints that verify."""
    found = sweep(tmp_path, SPEC, [*pair.values()])
    assert len(found["rows"]) == 5
    assert (tmp_path / "sweep" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    for name in PLACES:
        surgery.verify(tmp_path / "sweep" / "checkpoints" / name)


@pytest.mark.real
def test_smollm2(smollm2: Smollm2, tmp_path: Path) -> None:
    """By losses on hands of cards: each variant is told apart, and the smallest mean on the selection half chosen."""
    found = sweep(tmp_path, LOSSES, [smollm2.base, smollm2.tuned])
    losses = {row["name"]: row["scores"]["all"]["ood"]["value"] for row in found["rows"]}
    assert len(set(losses.values())) == 5
    candidates = {row["name"]: row["objective"] for row in found["rows"] if row["name"] != "base"}
    assert found["best"] == max(candidates, key=lambda name: candidates[name])
    if found["best"] != "sft":
        surgery.verify(tmp_path / "sweep" / "best")


PROGRAM = """
import json, sys
from pathlib import Path
import evalkit.sweeps.scoring as scoring
from evalkit.sweeps.sweep import sweep
engines = []
real = scoring.make_engine
def make(*arguments):
    engines.append(real(*arguments))
    return engines[-1]
scoring.make_engine = make
spec, base, sft, out = json.loads(sys.argv[1]), *sys.argv[2:]
result = sweep(spec, {"base": base, "sft": sft}, out, disk=3 * (Path(sft) / "model.safetensors").stat().st_size)
used = [engine for engine in engines if engine.starts]
print(json.dumps({"starts": [engine.starts for engine in used], "swaps": [engine.swaps for engine in used],
                  "rows": len(result.rows)}))
"""


@pytest.mark.vllm
def test_one_vllm_engine_serves_all(tmp_path: Path) -> None:
    """It is started once; the weights of the other model and of all variants are put into it, in two batches and more.

    Under two seeds each is put in once.
    """
    models = [str(save_tiny(tmp_path / name, seed)) for seed, name in enumerate(("base", "sft"))]
    spec = {**SPEC, "evaluation": {**SPEC["evaluation"], "engine": "vllm", "seeds": [0, 1]}, "keep": "best"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(spec), *models, str(tmp_path / "out")],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False, env=os.environ | WITHIN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"starts": [1], "swaps": [4], "rows": 5}
    best = tmp_path / "out" / "best"  # of models that know nothing, `sft` itself may be the best
    assert best.exists() or json.loads((tmp_path / "out/report.json").read_bytes())["best"] == "sft"
