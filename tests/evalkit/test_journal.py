"""Results that survive kills and full disks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ResultsError
from evalkit.journal import Journal


def filled(path: Path) -> list[bytes]:
    """A journal of three rows; its lines."""
    with Journal(path) as journal:
        for i in range(3):
            journal.put(f"id/{i}", {"value": i, "text": "é\n\ud800"})
    return path.read_bytes().splitlines(keepends=True)


def test_rows_come_back(tmp_path: Path) -> None:
    """What was put is there when the file is opened again, each a line of JSON with its id."""
    path = tmp_path / "deep" / "samples.jsonl"
    assert len(filled(path)) == 3
    with Journal(path) as journal:
        assert journal.get("id/2") == {"value": 2, "text": "é\n\ud800"}
        assert journal.get("id/3") is None
    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == ["id/0", "id/1", "id/2"]


def test_every_cut_is_repaired(tmp_path: Path) -> None:
    """A file cut after any byte holds exactly the whole lines before, and goes on from there."""
    path = tmp_path / "samples.jsonl"
    lines = filled(path)
    content = b"".join(lines)
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        with Journal(path) as journal:
            assert list(journal.rows) == [f"id/{i}" for i in range(whole)]
            journal.put("new", {})
        assert path.read_bytes().splitlines(keepends=True) == [*lines[:whole], b'{"id": "new"}\n']


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[1]\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"id": []}\n', b"\xff\n"])
def test_a_damaged_line_is_as_if_not_written(tmp_path: Path, damage: bytes) -> None:
    """Damage in the middle costs that line alone."""
    path = tmp_path / "samples.jsonl"
    first, _, last = filled(path)
    path.write_bytes(first + damage + last)
    with Journal(path) as journal:
        assert list(journal.rows) == ["id/0", "id/2"]


def test_the_last_of_a_name_counts(tmp_path: Path) -> None:
    """Putting a name again replaces what it stood for."""
    with Journal(tmp_path / "j") as journal:
        journal.put("a", {"value": 1})
        journal.put("a", {"value": 2})
    with Journal(tmp_path / "j") as journal:
        assert journal.rows == {"a": {"value": 2}}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second opening is refused in plain words, until the first is closed."""
    with Journal(tmp_path / "j"), pytest.raises(ResultsError, match="another process"):
        Journal(tmp_path / "j")
    Journal(tmp_path / "j").close()


def test_a_forked_process_keeps_no_lock(tmp_path: Path) -> None:
    """Engines fork processes that live on after the journal is closed."""
    read, write = os.pipe()
    with Journal(tmp_path / "j"):
        child = os.fork()
        if child == 0:
            os.read(read, 1)  # until the test is done
            os._exit(0)
    try:
        Journal(tmp_path / "j").close()
    finally:
        os.write(write, b".")
        os.waitpid(child, 0)


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks is told apart from another process."""

    def unknown(*_: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("evalkit.journal.fcntl.flock", unknown)
    with pytest.raises(ResultsError, match=r"cannot lock .* on a file system that has locks"):
        Journal(tmp_path / "j")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room is one message, and what half arrived is repaired."""
    path = tmp_path / "j"
    real: Callable[[int, bytes], int] = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return real(fd, data[: len(data) // 2])

    with Journal(path) as journal:
        journal.put("a", {"value": 1})
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ResultsError, match="No space left on device; what is finished is kept"):
            journal.put("b", {"value": "x" * 100})
        monkeypatch.undo()
    assert not path.read_bytes().endswith(b"\n")
    with Journal(path) as journal:
        assert list(journal.rows) == ["a"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where a directory is needed is one message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="choose another `--out`"):
        Journal(tmp_path / "file" / "j")


@given(st.dictionaries(st.text(max_size=5), st.dictionaries(st.just("v"), st.text(max_size=5)), max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, dict[str, str]]) -> None:
    """Whatever text a model says comes back as it was."""
    path = tmp_path_factory.mktemp("journal") / "j"
    with Journal(path) as journal:
        for name, row in rows.items():
            journal.put(name, row)
    with Journal(path) as journal:
        assert journal.rows == rows
