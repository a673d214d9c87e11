"""Short names of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgery.analysis.names import LONGEST, short_names
from surgery.checkpoint import open_checkpoint
from tests.conftest import MakeCheckpoint


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["base", "sft"], ["base", "sft"]),
        (["base", "runs/sft/final", "runs/ppo/final"], ["base", "sft-final", "ppo-final"]),
        (["base", "base"], ["base", "base-2"]),
        (["sft-2", "sft"], ["sft-2", "sft"]),
        (["sft", "sft-2", "sft"], ["sft", "sft-2", "sft-3"]),
        (["a b/ü", "c/ü"], None),
    ],
)
def test_the_end_of_the_path_tells_models_apart(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, paths: list[str], names: list[str] | None
) -> None:
    """As short as it can be, distinct always, and in characters that file names and arrays can have."""
    for path in dict.fromkeys(paths):
        make_checkpoint(path, layers=1)
    found = short_names([open_checkpoint(tmp_path / path) for path in paths])
    assert len(set(found)) == len(paths)
    assert all(name.isascii() and "/" not in name and 0 < len(name) <= LONGEST + 2 for name in found)
    if names is not None:
        assert list(found) == names


def test_a_single_file_is_named_without_its_ending(make_checkpoint: MakeCheckpoint) -> None:
    """`model.safetensors` of two directories are told apart by these."""
    files = [open_checkpoint(make_checkpoint(name, layers=1) / "model.safetensors") for name in ("one", "two")]
    assert short_names(files) == ("one-model", "two-model")
    assert Path(files[0].source).suffix == ".safetensors"
