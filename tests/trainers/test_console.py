"""What is printed at the end of a run."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
from rich.console import Console

from evalkit.stats import Estimate, proportion
from surgery.bundled import names
from trainers import console as console_module
from trainers.console import print_report
from trainers.report import CheckpointRow, Report, Trainer

Show = Callable[..., str]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """What `print_report` prints on a terminal of a width, or, without one, into a pipe."""

    def printed(report: Report, width: int | None = None) -> str:
        with monkeypatch.context() as patch:
            if width is not None:
                terminal = Console(width=width, highlight=False, markup=False, emoji=False)
                patch.setattr(console_module, "make_console", lambda: terminal)
            print_report(report)
        return capsys.readouterr().out

    return printed


def share(solved: int) -> Estimate:
    return proportion([i < solved for i in range(64)], range(64))


def sft(out: str = "runs/sft", accuracy: bool = True, best: int | None = 140) -> Report:
    """Three checkpoints, the first the best out of distribution, the second no longer there."""
    rows = tuple(
        CheckpointRow(
            step=step,
            name=f"checkpoint-{step}",
            path=f"{out}/checkpoint-{step}",
            kept=step != 600,
            loss=0.5 - step / 10_000,
            losses={"id": 0.4, "ood": 0.5 + step / 10_000},
            scores={"id": share(30), "ood": share(12 - step // 100)} if accuracy else {},
        )
        for step in (140, 600, 1100)
    )
    return Report("sft", "org/base", out, 1100, rows, best, task="general_points")


def rl(trainer: Trainer = "ppo") -> Report:
    """Two checkpoints, the last the best, the first without a measurement."""
    rows = (
        CheckpointRow(10, "checkpoint-10", "runs/rl/checkpoint-10", reward=-1.5),
        CheckpointRow(20, "checkpoint-20", "runs/rl/checkpoint-20", scores={"ood": share(16)}, reward=-0.25),
    )
    return Report(trainer, "runs/sft/final", "runs/rl", 20, rows, 20)


def body(text: str, start: str) -> list[str]:
    """The line that begins with `start`, in words."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.split()


def test_sft_at_80_columns(show: Show) -> None:
    """Losses, shares with intervals, and which checkpoint is which."""
    text = show(sft(), 80)
    assert text.splitlines()[0] == "supervised fine-tuning  org/base, 1,100 steps"
    assert "step   loss   loss   loss             n = 64             n = 64" in text
    assert "ID accuracy, %    OOD accuracy, %" in text
    assert " ".join(body(text, "140 ")) == "140 0.486 0.400 0.514 46.9 [35.2, 58.9] 17.2 [ 9.9, 28.2] inter-sft"
    assert " ".join(body(text, "600 ")) == "600 0.440 0.400 0.560 46.9 [35.2, 58.9] 9.4 [ 4.4, 19.0] not kept"
    assert body(text, "1,100 ")[-1] == "final"
    assert "[ ] 95 % interval\n" in text


def test_the_same_checkpoint_may_be_both(show: Show) -> None:
    """The last one may be the best."""
    assert body(show(sft(best=1100)), "1,100 ")[-2:] == ["inter-sft,", "final"]


def test_rl(show: Show) -> None:
    """Reward and success; what was not measured is a dash."""
    text = show(rl(), 80)
    assert text.splitlines()[0] == "PPO  runs/sft/final, 20 updates"
    assert "OOD success, %" in text
    assert "loss" not in text.replace("losses", "")
    assert body(text, "10 ") == ["10", "-1.50", "-"]
    assert " ".join(body(text, "20 ")) == "20 -0.25 25.0 [16.0, 36.8] best OOD, final"
    assert show(rl("grpo")).startswith("GRPO ")


@pytest.mark.parametrize("report", [sft(), sft(accuracy=False), rl()], ids=["accuracy", "losses", "rl"])
def test_narrow_terminals(show: Show, report: Report) -> None:
    """Tables part into several with the same steps and marks, and no figure is broken in two."""
    text = show(report, 40)
    tables, commands = text[: text.index(report.out + ":")], text[text.index(report.out + ":") :]
    assert max(map(len, tables.splitlines()[1:])) <= 40
    for row in report.checkpoints:
        for loss in row.losses.values():
            assert f"{loss:.3f}" in tables
        for score in row.scores.values():
            assert f" {100 * score.value:.1f} " in tables.replace("\n", " ")
            assert f"[{100 * score.low:4.1f}, {100 * score.high:4.1f}]" in tables
    assert tables.count("inter-sft" if report.trainer == "sft" else "best OOD") == tables.count(" final")
    assert len(commands.splitlines()) == 3


def test_a_pipe_gets_whole_lines(show: Show) -> None:
    """Nothing is folded there, however long the paths are."""
    text = show(sft("runs/" + "deep/" * 40 + "sft"))
    assert "ID accuracy, %" in text
    assert len(text[text.index("95 % interval") :].splitlines()) == 5


def test_what_to_do_next(show: Show) -> None:
    """Where the files are, and commands that the shell takes as they stand, with recipes that exist."""
    where, scored, edited = show(sft("my runs/[red]"), 40).splitlines()[-3:]
    assert where == "my runs/[red]: losses.png, losses.svg, log.jsonl, report.json"
    base, best, final = "org/base", "my runs/[red]/inter-sft", "my runs/[red]/final"
    assert shlex.split(scored) == ["surgery", "eval", "general_points", base, best, final]
    assert shlex.split(edited) == ["surgery", "apply", "restore-top-20pct", best, final, "my runs/[red]-edited"]
    *_, where, scored, edited = show(rl()).splitlines()
    assert where == "runs/rl: updates.png, updates.svg, log.jsonl, report.json"
    assert shlex.split(scored) == ["surgery", "eval", "TASK", "runs/sft/final", "runs/rl/final"]
    recipe = ["surgery", "apply", "rl-with-sft-directions", "runs/sft/final", "runs/rl/final", "runs/rl-edited"]
    assert shlex.split(edited) == recipe
    assert {"restore-top-20pct", "rl-with-sft-directions"} <= set(names())


def test_the_final_checkpoint_is_named_once(show: Show) -> None:
    """Where the best is the last, or none is known, the checkpoint before training is what it is compared with."""
    for best in (1100, None):
        *_, scored, edited = show(sft(best=best)).splitlines()
        assert shlex.split(scored)[3:] == ["org/base", "runs/sft/final"]
        assert shlex.split(edited)[3:] == ["org/base", "runs/sft/final", "runs/sft-edited"]


def test_note(show: Show) -> None:
    """What the user should know stands below the table, whatever its brackets say."""
    report = Report("sft", "m", "o", 5, (CheckpointRow(5, "checkpoint-5", "o/checkpoint-5"),), note="no [bold] data")
    assert "\nnote: no [bold] data\n" in show(report, 80)
