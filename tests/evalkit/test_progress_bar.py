"""What is said while an evaluation runs."""

from __future__ import annotations

import sys

import pytest

from evalkit import progress_bar
from evalkit.progress_bar import ProgressBar


def test_progress_in_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on a terminal: a line a model and a turn, and one every few seconds; nothing on stdout."""
    now = [0.0]
    monkeypatch.setattr(progress_bar, "monotonic", lambda: now[0])
    with ProgressBar() as progress:
        progress.model("[bold]sft", 100, 40)
        now[0] = 30.0  # the checkpoint is loaded: no part of the rate
        progress.turn(1, 60)
        for _ in range(20):
            now[0] += 1
            progress.answered(50)
            progress.finished()
        progress.note("`sft` [red] is odd")
        progress.turn(2, 40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "[bold]sft: 60 of 100 to do, 40 known from an earlier run",
        "[bold]sft: turn 1, 60 episodes",
        *(f"[bold]sft: {40 + i} of 100, 50 tokens/s" for i in (4, 9, 14, 19)),
        "note: `sft` [red] is odd",
        "[bold]sft: turn 2, 40 episodes",
    ]


@pytest.mark.parametrize("width", [80, 40])
def test_progress_on_a_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar that fits on a line, with the model's name by its end, and no line of its own for each turn."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    with ProgressBar() as progress:
        progress.model("runs/general_points/sft/checkpoint-1100", 468, 100)
        progress.turn(5, 368)
        progress.answered(57)
        progress.finished()
    text = capsys.readouterr().err
    assert "…checkpoint-1100 turn 5" in text
    assert "101/468" in text
    assert "to do" not in text
