"""`surgery diff` as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.pairs import llama, near, write

CLI = [sys.executable, "-m", "surgery.cli", "diff"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with base, sft and rl."""
    directory = tmp_path_factory.mktemp("cli")
    base = llama(layers=3, width=16)
    sft = near(base)
    for name, tensors in (("base", base), ("sft", sft), ("rl", near(sft, seed=2, change=0.02))):
        write(directory / name, tensors)
    return directory


def diff(
    place: Path, *words: str, code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it there and check the exit code; there is never a traceback."""
    done = subprocess.run(
        [*CLI, *words], cwd=place, text=True, capture_output=True, check=False, env=os.environ | (env or {})
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_what_is_printed(place: Path) -> None:
    """A heat map a pair with a row a layer, the figures in short, ten matrices, advice; no report without --out."""
    printed = diff(place, "base", "sft", "rl").stdout
    assert printed.startswith("spectral comparison  base (base), sft (sft), rl (rl); all directions")
    for pair in ("base -> sft", "base -> rl", "sft -> rl"):
        assert f"{pair}: mean principal angle of the leading 20%, degrees" in printed
    assert len(re.findall(r"^ +[0-2] +[0-9]", printed, re.MULTILINE)) == 9
    assert printed.count("of 3\n") + printed.count("of 2\n") >= 5
    assert "surgery apply wise-ft base sft averaged --set alpha=0.5" in printed
    assert {path.name for path in place.iterdir()} == {"base", "sft", "rl"}


def test_json_is_all_there_is_on_stdout(place: Path) -> None:
    """Plain JSON, without NaN; the heat map's numbers are in the tables."""
    printed = diff(place, "base", "sft", "--quick", "--json").stdout
    found = json.loads(printed, parse_constant=pytest.fail)
    assert found["models"] == {"base": "base", "sft": "sft"}
    assert len(found["most_rotated"]) == 10
    assert found["pairs"]["base>sft"]["matrices"] == 23


def test_options_reach_the_comparison(place: Path) -> None:
    """Ranks, layers, tensors and what is left out."""
    words = ["--rank", "3", "--rank", "50%", "--layers", "first 2", "--tensors", "attention", "--exclude", "*.k_proj.*"]
    found = json.loads(diff(place, "base", "sft", "--json", *words, "--workers", "1", "--memory", "2GB").stdout)
    assert found["ranks"] == ["3", "50%"]
    assert found["pairs"]["base>sft"]["matrices"] == 2 * 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["base"], 2, "Missing argument 'TUNED'"),
        (["base", "sft", "--rank", "many"], 2, "found `many`; expected a count"),
        (["base", "sft", "--rank", "0"], 2, "found `0`; expected at least 1 direction"),
        (["base", "sft", "--layers", "some"], 2, "found `some`; expected `all`"),
        (["base", "sft", "--memory", "2"], 2, "expected a size with its unit"),
        (["base", "sft", "--fresh"], 2, "are for what `--out` names"),
        (["base", "sfd"], 1, "error: `sfd` does not exist (did you mean `sft`?)"),
        (["base", "sft", "--layers", "0-9"], 1, "names layer 9; the stack has layers 0-2"),
        (["base", "sft", "--tensors", "attn"], 1, "`attn` matches no tensor"),
        (["base", "sft", "--memory", "1MB"], 1, "raise `--memory` to at least"),
        (["base", "sft", "--device", "quantum"], 1, "device `quantum`: cannot be used here"),
        (["base", "sft", "--out", "base"], 1, "is, contains or lies inside the input `base`"),
        (["base", "sft", "--out", "/proc/report"], 1, "cannot write `/proc/report.partial`"),
    ],
)
def test_bad_input_gets_one_message(place: Path, words: list[str], code: int, message: str) -> None:
    """With exit code 1 or 2, and nothing is left behind."""
    done = diff(place, *words, code=code)
    assert message in done.stderr
    assert not done.stdout
    assert {path.name for path in place.iterdir()} == {"base", "sft", "rl"}


def test_a_cache_that_cannot_be_used_is_told(place: Path, tmp_path: Path) -> None:
    """A size that is none stops; a directory that cannot be written costs nothing but a note."""
    done = diff(place, "base", "sft", code=1, env={"SURGERY_CACHE": str(tmp_path / "c"), "SURGERY_CACHE_SIZE": "much"})
    assert "SURGERY_CACHE_SIZE" in done.stderr
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(260, 260) for i in range(2)}
    for name in ("base", "sft"):
        write(tmp_path / name, tensors)
    done = diff(tmp_path, "base", "sft", env={"SURGERY_CACHE": "/proc/nowhere"})
    assert done.stderr.count("note: decompositions are not kept: `/proc/nowhere` cannot be written") == 1


def test_ctrl_c_keeps_what_is_measured(place: Path, tmp_path: Path) -> None:
    """Exit code 130, a line that says how to go on, and the same command does."""
    tensors = llama(layers=6, width=384, vocabulary=64)
    for name, found in (("base", tensors), ("sft", near(tensors))):
        write(tmp_path / name, found)
    command = [*CLI, "base", "sft", "--out", "report", "--tensors", "attention", "--tensors", "mlp"]
    process = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    measured = tmp_path / "report.partial" / "measured"
    deadline = time.monotonic() + 60
    while not (measured.exists() and len(list(measured.glob("*.npz"))) > 1):
        assert process.poll() is None, "it ended too soon to be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "what is measured is kept: run the same command again to go on" in told
    assert not (tmp_path / "report").exists()
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
    assert "report: report.html" in done.stdout
    assert place.exists()
