"""Figures that survive kills and full disks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.errors import RunError
from trainers.log import Log

ROWS = [
    {"step": 1, "loss": 2.5},
    {"step": 2, "loss": 2.25},
    {"step": 2, "id_loss": 2.0, "ood_loss": 2.125},
    {"step": 3, "loss": None},
]


def filled(path: Path) -> list[bytes]:
    """A log of four rows, the last with a figure that is no number; its lines."""
    with Log(path) as log:
        log.write(1, loss=2.5)
        log.write(2, loss=2.25)
        log.write(2, id_loss=2, ood_loss=2.125)
        log.write(3, loss=float("nan"))
        assert log.rows == ROWS
    return path.read_bytes().splitlines(keepends=True)


def test_one_object_a_line(tmp_path: Path) -> None:
    """Rows of one step stay apart; figures are floats, and null where they are not finite."""
    lines = filled(tmp_path / "deep" / "log.jsonl")
    assert [json.loads(line) for line in lines] == ROWS
    assert b'"id_loss": 2.0' in lines[2]
    with Log(tmp_path / "deep" / "log.jsonl") as log:
        assert log.rows == ROWS


def test_a_row_is_there_at_once(tmp_path: Path) -> None:
    """Nothing waits in a buffer for a kill."""
    with Log(tmp_path / "log.jsonl") as log:
        log.write(7, loss=float("inf"), reward=-1)
        assert (tmp_path / "log.jsonl").read_text() == '{"step": 7, "loss": null, "reward": -1.0}\n'


def test_every_cut_is_repaired(tmp_path: Path) -> None:
    """A file cut after any byte holds exactly the whole lines before, and goes on from there."""
    path = tmp_path / "log.jsonl"
    lines = filled(path)
    content = b"".join(lines)
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        with Log(path) as log:
            assert log.rows == ROWS[:whole]
            log.write(9, loss=1)
        assert path.read_bytes().splitlines(keepends=True) == [*lines[:whole], b'{"step": 9, "loss": 1.0}\n']


@pytest.mark.parametrize(
    "damage",
    [b"\0\0\n", b"[1]\n", b"{}\n", b'{"step": "2"}\n', b'{"step": true}\n', b'{"step": 2, "loss": []}\n', b"\xff\n"],
)
def test_a_damaged_line_is_as_if_not_written(tmp_path: Path, damage: bytes) -> None:
    """Damage in the middle costs that line alone."""
    path = tmp_path / "log.jsonl"
    first, _, *rest = filled(path)
    path.write_bytes(first + damage + b"".join(rest))
    with Log(path) as log:
        assert log.rows == [ROWS[0], *ROWS[2:]]


@pytest.mark.parametrize(("at", "left"), [(0, 0), (1, 1), (2, 3), (3, 4), (9, 4)])
def test_later_rows_go_where_a_run_goes_on(tmp_path: Path, at: int, left: int) -> None:
    """Steps after the last saved state are made again, and so are their rows."""
    path = tmp_path / "log.jsonl"
    lines = filled(path)
    with Log(path, resume_at=at) as log:
        assert log.rows == ROWS[:left]
        assert path.read_bytes() == b"".join(lines[:left])
        log.write(at + 1, loss=1)
    assert path.read_bytes() == b"".join([*lines[:left], b'{"step": %d, "loss": 1.0}\n' % (at + 1)])
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_dropping_rows_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shorter file cannot be put in place, the longer one is as it was."""
    path = tmp_path / "log.jsonl"
    lines = filled(path)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(RunError, match="Input/output error"):
        Log(path, resume_at=1)
    assert path.read_bytes() == b"".join(lines)


def test_the_rows_are_a_copy(tmp_path: Path) -> None:
    """Who gets the rows may do as he likes with them."""
    with Log(tmp_path / "log.jsonl") as log:
        log.write(1, loss=2)
        log.rows[0]["loss"] = 0.0
        assert log.rows == [{"step": 1, "loss": 2.0}]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room is one message that says what to do, and what half arrived is repaired."""
    path = tmp_path / "log.jsonl"
    real: Callable[[int, bytes], int] = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return real(fd, data[: len(data) // 2])

    with Log(path) as log:
        log.write(1, loss=2)
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(RunError, match=r"log\.jsonl`: No space left on device; make room .* `--resume`"):
            log.write(2, loss=1, grad_norm=0.125)
        monkeypatch.undo()
    assert not path.read_bytes().endswith(b"\n")
    with Log(path) as log:
        assert log.rows == [{"step": 1, "loss": 2.0}]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where a directory is needed is one message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot keep the run's figures in .*choose another `--out`"):
        Log(tmp_path / "file" / "log.jsonl")


@given(st.lists(st.tuples(st.integers(0, 100), st.floats()), max_size=8), st.integers(0, 100))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float]], at: int) -> None:
    """Every float comes back with all its digits, and no row up to a step is lost, whatever the order of steps."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with Log(path) as log:
        for step, figure in rows:
            log.write(step, figure=figure)
        before = log.rows
    with Log(path, resume_at=at) as log:
        assert log.rows == [row for row in before if row["step"] <= at]
