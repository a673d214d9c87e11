"""The demo runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.pairs import read


def test_demo(tmp_path: Path) -> None:
    """`make demo` edits its pair by three recipes, each nearer to the base, and says where they lie."""
    command = [sys.executable, "-m", "tests.demo", tmp_path / "demo"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"The checkpoints lie in {tmp_path / 'demo'};" in told
    table = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.endswith("%")}
    to_base = {name: float(row[0].rstrip("%")) for name, row in table.items()}
    assert to_base["sft"] > 15
    for recipe in ("restore-top-20pct", "restore-top-20pct-rotate", "wise-ft"):
        assert f"$ surgery apply {recipe} " in told
        assert to_base[recipe] < 0.75 * to_base["sft"]
        assert len(read(tmp_path / "demo" / recipe)) == 38
