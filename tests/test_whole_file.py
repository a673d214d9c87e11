"""Files that are written at once, or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from surgery.whole_file import as_json, write_whole


def full(self: Path, content: bytes) -> NoReturn:
    """A disk that takes half of a file."""
    with self.open("wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))


def test_a_file_that_does_not_fit_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing beside it."""
    path = tmp_path / "report.json"
    write_whole(path, b"before")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, b"x" * 1000)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"


@pytest.mark.parametrize("content", [{"out": "runs/\udcff"}, {"a": [1, None, 2.5], "b": {"c": "\u00e4"}}, {}])
def test_json_reads_back(content: dict[str, Any]) -> None:
    """Whatever is plain data, paths that are no UTF-8 too."""
    assert json.loads(as_json(content)) == content
