"""What is said while a run trains."""

from __future__ import annotations

import sys

import pytest

from evalkit import progress_bar
from trainers.progress import Progress
from trainers.progress_bar import TrainingBar


def test_progress_in_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on a terminal: a line a phase, and one every few seconds; nothing on stdout."""
    now = [0.0]
    monkeypatch.setattr(progress_bar, "monotonic", lambda: now[0])
    with TrainingBar() as bar:
        progress: Progress = bar
        progress.phase("[bold]training", 1100, 100)
        for _ in range(12):
            now[0] += 1
            progress.step({"loss": 0.41237, "learning_rate": 9.8e-7, "ood_loss": 12.0, "more": 1.0})
        progress.note("`sft` [red] is odd")
        progress.phase("episodes of update 3", 4)
        now[0] += 3600
        progress.step({})
    captured = capsys.readouterr()
    assert captured.out == ""
    figures = "loss 0.412, learning_rate 9.8e-07, ood_loss 12"
    assert captured.err.splitlines() == [
        "[bold]training: 1,100 steps, 100 of them done earlier",
        f"[bold]training: 105 of 1,100, 0:00:05, 0:16:35 left, {figures}",
        f"[bold]training: 110 of 1,100, 0:00:10, 0:16:30 left, {figures}",
        "note: `sft` [red] is odd",
        "episodes of update 3: 4 steps",
        "episodes of update 3: 1 of 4, 1:00:00",
    ]


def test_the_time_left_is_that_of_slow_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of minutes are not forgotten before the next one is done."""
    now = [0.0]
    monkeypatch.setattr(progress_bar, "monotonic", lambda: now[0])
    with TrainingBar() as progress:
        progress.phase("updates", 20)
        for _ in range(3):
            now[0] += 600
            progress.step({})
    assert capsys.readouterr().err.splitlines()[-1] == "updates: 3 of 20, 0:30:00, 2:50:00 left"


@pytest.mark.parametrize(
    ("width", "name", "figures"),
    [
        (80, "validation of update 13", "loss 0.5"),
        (100, "validation of update 13", "loss 0.5  reward -1"),
        (40, "…update 13", ""),
    ],
)
def test_progress_on_a_terminal(
    width: int, name: str, figures: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line: the phase by its end, the counts, the times, and the figures that it has room for."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    with TrainingBar() as progress:
        progress.phase("validation of update 13", 1100, 999)
        progress.step({"loss": 0.5, "reward": -1.0, "learning_rate": 9.876e-7})
    text = capsys.readouterr().err
    last = next(line for line in reversed(text.splitlines()) if "1000/1100" in line)
    assert name in last
    assert "0:00:00 -:--:--" in last
    assert last.endswith(f"-:--:-- {figures}".rstrip()) or f"-:--:-- {figures} " in last
    assert "steps" not in text
