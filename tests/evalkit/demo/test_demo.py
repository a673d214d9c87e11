"""The demo runs as a user types it, on the checkpoints that come with the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import surgery
from evalkit.demo.run import MODELS, lay_out
from surgery.errors import OutputError

DEMO = [sys.executable, "-m", "surgery", "demo"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the demo was run with a few examples, and what it printed."""
    place = tmp_path_factory.mktemp("demo")
    done = subprocess.run([*DEMO, "out", "--n", "16"], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place, done.stdout


def test_it_scores_models_and_edits(shown: tuple[Path, str]) -> None:
    """A row with intervals for each of the four models and more than six edits; averages and the control are there."""
    place, text = shown
    rows = json.loads((place / "out/sweep/report.json").read_bytes())["rows"]
    names = [row["name"] for row in rows]
    assert names[:4] == list(MODELS)
    assert len(names) >= 10
    assert {"values-only", "wise-ft alpha=0.5", "restore-top-20pct-rotate head=50%"} <= set(names)
    for row in rows:
        assert row["name"] in text
        for split in ("id", "ood"):
            score = row["scores"]["all"][split]
            assert score["low"] <= score["value"] <= score["high"]
            assert score["n"] == 16


def test_it_says_what_came_out(shown: tuple[Path, str]) -> None:
    """In words, with the plot, the page, and commands that work on what it leaves."""
    place, text = shown
    assert "Fine-tuning took the base from" in text
    assert "The control, singular values alone put back:" in text
    assert all((place / "out/sweep" / name).is_file() for name in ("pareto.png", "pareto.svg", "report.html"))
    commands = [line.strip() for line in text.splitlines() if line.startswith("  surgery ")]
    assert len(commands) == 3
    edit = next(line for line in commands if line.startswith("surgery apply")).split()
    subprocess.run([sys.executable, "-m", *edit], cwd=place, check=True, capture_output=True)
    assert surgery.verify(place / "out/edited").tensors == 75


def test_again_it_does_nothing(shown: tuple[Path, str]) -> None:
    """A second run answers from what is there, and as JSON prints nothing else."""
    place, _ = shown
    done = subprocess.run(
        [*DEMO, "out", "--n", "16", "--json"], cwd=place, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert len(json.loads(done.stdout)["words"]) > 8
    assert "making" not in done.stderr


def test_it_leaves_other_things_alone(tmp_path: Path) -> None:
    """A directory that holds anything else is refused, a `base` of one's own too, and nothing is written there."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base/mine").write_text("")
    with pytest.raises(OutputError, match="holds something else"):
        lay_out(tmp_path)
    with pytest.raises(OutputError, match="is no directory"):
        lay_out(tmp_path / "base/mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["base", "mine"]


def test_what_is_not_as_shipped_is_laid_out_anew(tmp_path: Path) -> None:
    """A half-copied model of a killed run, one that was changed, and one of another version."""
    out = tmp_path / "out"
    lay_out(out)
    (out / "rl").rename(out / ".rl.partial")
    (out / ".rl.partial/config.json").unlink()
    (out / "sft/model.safetensors").write_bytes(b"")
    before = (out / "base").stat().st_ino
    lay_out(out)
    assert (out / "rl/config.json").is_file()
    assert (out / "sft/model.safetensors").stat().st_size > 10**6
    assert not (out / ".rl.partial").exists()
    assert (out / "base").stat().st_ino == before
