"""Which checkpoint it is, by content."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import evalkit.digest
from evalkit.digest import checkpoint_digest
from evalkit.errors import ResultsError
from surgery.checkpoint import open_checkpoint
from tests.conftest import MakeCheckpoint


def digest(directory: Path, cache: Path) -> str:
    return checkpoint_digest(open_checkpoint(directory), cache)


def test_content_counts_and_nothing_else(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """The same content elsewhere has the same digest; a model card, a manifest and other files do not matter."""
    a, b = make_checkpoint("a"), make_checkpoint("b")
    (b / "README.md").write_text("card")
    (b / "surgery.json").write_text("{}")
    (b / "optimizer.pt").write_bytes(b"0")
    (b / "LICENSE").write_text("free")
    assert digest(a, tmp_path / "d1.json") == digest(b, tmp_path / "d2.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"])
def test_what_answers_depend_on_counts(make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str) -> None:
    """A changed or added config, tokenizer or template is another checkpoint."""
    directory = make_checkpoint("a")
    before = digest(directory, tmp_path / "digests.json")
    (directory / name).write_text('{"changed": true}')
    assert digest(directory, tmp_path / "digests.json") != before


def test_changed_weights_under_the_same_path(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """One byte of a tensor, with size and modification time as before, is noticed."""
    directory, cache = make_checkpoint("a"), tmp_path / "digests.json"
    path = directory / "model.safetensors"
    before, status = digest(directory, cache), path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert digest(directory, cache) != before


def test_untouched_files_are_not_read_again(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time the digest comes from the cache; a damaged cache only costs the reading."""
    directory, cache = make_checkpoint("a"), tmp_path / "digests.json"
    first = digest(directory, cache)
    with monkeypatch.context() as patched:
        patched.setattr(evalkit.digest, "blake3", None)
        assert digest(directory, cache) == first
    for content in ("", "[]", "{", json.dumps({str(directory.resolve()): 3})):
        cache.write_text(content)
        assert digest(directory, cache) == first


def test_a_cache_that_cannot_be_written(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """A file where the results' directory should be is one message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="choose another `--out`"):
        digest(make_checkpoint("a"), tmp_path / "file" / "digests.json")
