"""Runs files of mergekit over the models of a test's own fixture `models`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import surgery


@pytest.fixture
def run(models: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Runs a file whose models are those in the directory `models`; where the output lies."""

    def made(text: str) -> Path:
        (tmp_path / "merge.yml").write_text(text.replace("MODELS", str(models)))
        surgery.apply(tmp_path / "merge.yml", (), tmp_path / "out")
        surgery.verify(tmp_path / "out")
        return tmp_path / "out"

    return made
