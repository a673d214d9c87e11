"""What a person sees in a terminal, wide or narrow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from evalkit.sweeps import console as console_module
from evalkit.sweeps.console import SweepProgress, print_sweep
from evalkit.sweeps.result import SweepResult
from tests.evalkit.sweeps.made import VARIANTS, aim, failed, many, result

Show = Callable[..., str]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """What `print_sweep` prints on a terminal of a width, or into a pipe."""

    def printed(found: SweepResult, width: int | None = None) -> str:
        with monkeypatch.context() as patch:
            if width is not None:
                terminal = Console(width=width, highlight=False, markup=False, emoji=False)
                patch.setattr(console_module, "make_console", lambda: terminal)
            print_sweep(found, "sweep")
        return capsys.readouterr().out

    return printed


def kept(found: SweepResult, *names: str) -> SweepResult:
    """The result with checkpoints of these rows."""
    rows = (replace(row, kept=f"checkpoints/{row.name[:5]}" if row.name in names else None) for row in found.rows)
    return replace(found, rows=tuple(rows))


def test_a_wide_terminal(show: Show) -> None:
    """One table of scores and differences, what was chosen in words, and where everything lies."""
    lines = show(kept(result(), "restore head=40%", "values"), 160).splitlines()
    assert lines[0] == "tries  sums: part test, id 60, ood 60, seeds 0"
    assert lines[2].split() == ["accuracy,", "%", "id", "ood", "id", "−", "sft", "ood", "−", "sft"]
    assert [line.split()[0] for line in lines[3:9]] == ["1", "2", "3", "4", "5", "6"]
    assert lines[6].startswith("4 restore head=40%   >^  36.7 [25.6, 49.3]  41.7 [30.1, 54.3]   -20.0 [-29.7, -9.0] *")
    assert lines[9] == "[ ] 95 % interval; * p < 0.05 after Holm's correction; all examples"
    assert lines[10] == "> chosen; ^ Pareto-optimal"
    assert lines[12].startswith("Chosen on the selection half")
    assert lines[-3:] == [
        "sweep/best -> checkpoints/resto: 4 restore head=40%",
        "sweep/checkpoints/value: 5 values",
        "sweep/: report.html, pareto.png, pareto.svg, rows.jsonl, report.json",
    ]


@pytest.mark.parametrize("width", [80, 60])
def test_narrow_terminals(show: Show, width: int) -> None:
    """No line of the tables or the prose is wider, every figure stands whole on a line, every row is named."""
    found = result({**many(20), **VARIANTS}, aim(tolerate={"id": 0.3}))
    text = show(found, width)
    paths = text.index("sweep/: report.html")
    assert max(map(len, text[:paths].splitlines())) <= width
    for row in found.rows:
        for cell in console_module.scores(row, found) + console_module.changes(row, found):
            assert cell.strip() in text
    assert "! loses too much" in text


def test_long_names_keep_their_ends(show: Show) -> None:
    """Which tell values apart; and where the narrow table has no room, scores stay."""
    name = "restore-" + "very-long-" * 8 + "head=20%"
    text = show(result({name: {"id": 0.5, "ood": 0.5}}), 60)
    assert name not in text.split("\n\n")[1]
    assert "…" in text
    assert "head=20%" in text


def test_into_a_pipe_one_row_is_one_line(show: Show) -> None:
    """Whatever its length; prose is folded."""
    text = show(result(many(12)))
    rows = [line for line in text.splitlines() if "restore-top-20pct-a head=4%" in line and "[" in line]
    assert len(rows) == 1
    assert rows[0].count("[") == 4


def test_without_marks_or_checkpoints(show: Show) -> None:
    """One split, one variant that is not better: nothing is chosen, nothing is kept."""
    text = show(result({"values": {"id": 0.55}}, aim(("id",))), 80)
    assert "No variant is better than sft in id accuracy" in text
    assert ">" not in text.splitlines()[3]
    assert "best ->" not in text


def test_progress_counts_what_is_scored(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each part; what earlier runs have scored counts, and what is scored again does not count twice."""
    progress = SweepProgress()
    progress.begin(2, 3, 1)
    assert not progress.began
    for name in ("base", "sft"):
        with progress.scoring(name):
            pass
    with progress.making(1):
        pass
    for name in ("a", "b", "b"):
        with progress.scoring(name):
            pass
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "note: 1 of 3 variants is known from an earlier run", "[2/5] base", "[3/5] sft", "making 1 variant",
        "[4/5] a", "[5/5] b", "[5/5] b",
    ]  # fmt: skip
    assert progress.began


def test_what_could_not_be_made(show: Show) -> None:
    """Has a row without figures and a sign that is explained; the words say why."""
    out = show(result(more=[failed("big w=1")]), 120)
    (line,) = [line for line in out.splitlines() if "7 big w=1" in line]
    assert line.split() == ["7", "big", "w=1", "x"]
    assert "x could not be made" in out
    assert "big w=1 could not be made: `w`: the result reaches 1e+06." in out
