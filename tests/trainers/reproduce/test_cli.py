"""`surgery reproduce` from the command line, and a pipeline of real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surgery.mapping_source import to_yaml
from trainers.errors import RunError
from trainers.reproduce import api

REAL: dict[str, Any] = {
    "name": "real",
    "summary": "Two random models and their average.",
    "stages": [
        {
            "name": "base", "title": "a model", "makes": "base",
            "run": ["train", "init", "mini-init", "--out", "base", "--set", "seed=$seed"],
        },
        {
            "name": "sft", "title": "another one", "makes": "sft",
            "run": ["train", "init", "mini-init", "--out", "sft", "--set", "seed=1000"],
        },
        {
            "name": "wrong", "title": "what cannot be", "makes": "wrong", "needs": ["base"],
            "run": ["train", "sft", "mini-sft", "--model", "sft/nothing", "--out", "wrong"],
        },
        {
            "name": "average", "title": "their average", "makes": "average",
            "run": ["apply", "wise-ft", "base", "sft", "average"],
        },
    ],
    "experiments": [{"title": "none", "models": {"base": "base", "sft": "sft"}}],
}  # fmt: skip


def surgery(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "surgery", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"SURGERY_CACHE": "off"}, check=False
    )


def test_real_commands(tmp_path: Path) -> None:
    """They run in the seed's directory; one fails and says why; the others' results stand; and it can be gone on."""
    path, out = tmp_path / "real.yaml", tmp_path / "out"
    path.write_text(to_yaml(REAL))
    done = surgery("reproduce", path, "--out", out, "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    states = {stage["stage"]: stage["state"] for stage in result["stages"]}
    assert states == {"base": "finished", "sft": "finished", "wrong": "failed", "average": "finished"}
    message = next(stage["message"] for stage in result["stages"] if stage["stage"] == "wrong")
    assert "`sft/nothing`" in message
    assert (
        "stage 1 of 4  seed 0  base: a model\n  surgery train init mini-init --out base --set seed=0\n" in done.stderr
    )
    assert f"go on by: surgery reproduce {path} --out {out}" in done.stderr
    assert surgery("verify", out / "seed-0" / "average").returncode == 0
    manifest = (out / "seed-0" / "average" / "surgery.json").read_text()
    assert str(tmp_path) not in manifest
    assert "Nothing has been measured yet." in (out / "report.html").read_text()
    again = surgery("reproduce", path, "--out", out)
    assert "3 of 4 stages are finished" in again.stdout
    assert "4 stages, 3 of them done earlier" in again.stderr
    assert surgery("reproduce", path, "--out", out, "--report").returncode == 0
    fine = surgery("reproduce", path, "--out", out, "--only", "sft")
    assert fine.returncode == 0, fine.stderr  # another stage has failed, earlier
    assert "1 stage, 1 of them done earlier\n" in fine.stderr
    assert surgery("reproduce", path, "--out", out, "--only", "wrong").returncode == 1
    alone = surgery("reproduce", path, "--out", tmp_path / "other", "--only", "average")
    assert alone.returncode == 1
    assert "error: `average` (seed 0) waits for `base`, `sft`; run that first" in alone.stderr


def test_usage() -> None:
    """What is missing or unknown is one message."""
    assert surgery("reproduce", "mini").returncode == 2
    done = surgery("reproduce", "maxi", "--out", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: found neither a file nor a bundled pipeline `maxi`")
    done = surgery("reproduce", "mini", "--out", "x", "--dry-run", "--report")
    assert done.returncode == 2
    assert "`--dry-run` plans, `--report` shows what is there; give one of them" in done.stderr


@pytest.mark.parametrize("verb", [api.reproduce, api.report, api.plan])
def test_something_else_for_a_directory(verb: Any, tmp_path: Path) -> None:
    """It is named, with the remedy, before anything is done."""
    path = tmp_path / "file"
    path.touch()
    for out in (path, path / "below"):
        with pytest.raises(RunError, match=f"`{path}` is no directory; choose another `--out`, or move it away"):
            verb("mini", out)


@pytest.mark.parametrize("name", ["mini"])
def test_dry_run(tmp_path: Path, name: str) -> None:
    """Commands, needs and sizes for people; everything for programs."""
    done = surgery("reproduce", name, "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert (
        "surgery train sft mini-base --model init --out base --set seed=0 --set micro_batch_size=48 --resume"
        in done.stdout
    )
    assert "after base, sft; reads base/final, sft/inter-sft, sft/final; makes ranks" in done.stdout
    assert "Training: 16 bytes a parameter" in done.stdout
    found = json.loads(surgery("reproduce", name, "--out", tmp_path / "out", "--dry-run", "--json").stdout)
    assert [stage["name"] for stage in found["stages"]][:3] == ["init", "base", "sft"]
    assert not (tmp_path / "out").exists()
