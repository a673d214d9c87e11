from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
from rich.console import Console

from evalkit import console as console_module
from evalkit.console import print_report, print_tasks
from evalkit.figures import change, number_in, one_line, p_value, settings_line, share_in
from evalkit.stats import Difference, Estimate
from evalkit.summary import Metric, Report, Scored, summarise
from evalkit.task import CORRECT, UNPARSABLE
from evalkit.tasks import TASKS
from tests.evalkit.sums import Sums
from tests.evalkit.test_summary import loss, metric, sample, scored

Show = Callable[..., str]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """What `print_report` prints on a terminal of a width, or, without one, into a pipe."""

    def printed(report: Report, failures: bool = False, width: int | None = None) -> str:
        with monkeypatch.context() as patch:
            if width is not None:
                terminal = Console(width=width, highlight=False, markup=False, emoji=False)
                patch.setattr(console_module, "make_console", lambda: terminal)
            print_report(report, failures)
        return capsys.readouterr().out

    return printed


def models(*names: str, losses: bool = False, tries: int = 3, metrics: tuple[Metric, ...] = ()) -> list[Scored]:
    """Each solves ten more of 60 examples than the one before; `ood` half of them."""
    made = []
    for place, name in enumerate(names, 1):
        samples = []
        for split, solved in (("id", 10 * place), ("ood", 5 * place)):
            for i in range(60):
                kinds = [CORRECT] if i < solved else [UNPARSABLE] + (tries - 1) * ["wrong value"]
                samples.append(sample(i, *kinds, split=split))
        scored_losses = [loss(i, 3.0 - place + i / 60, 2, split=s) for s in ("id", "ood") for i in range(60)]
        made.append(scored(name, samples, scored_losses if losses else (), generated=20, metrics=metrics))
    return made


SETTINGS = {"kind": "answers", "task": "sums", "engine": "vllm", "seed": 0, "prompt": "x\n" * 50, "chat": False}


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_table_at_80_columns(show: Show):
    """What a person reads first: accuracy of every model by split, then how it came about, then what differs."""
    text = show(summarise("sums", SETTINGS, models("base", "sft")), width=80)
    assert text.splitlines()[0] == "sums  engine vllm, seed 0, prompt given, chat off"
    assert "accuracy, %         id  n = 60        ood  n = 60\n" in text
    assert "base         16.7 [ 9.3, 28.0]   8.3 [ 3.6, 18.1]\n" in text
    assert "sft          33.3 [22.7, 45.9]  16.7 [ 9.3, 28.0]\n" in text
    answers = text[text.index("answers") :].splitlines()
    assert answers[1].split() == ["id", "base", "16.7", "31.2", "0.00", "2.67", "4", "0.0"]
    assert answers[2].split() == ["sft", "33.3", "28.6", "1.00", "2.33", "4", "0.0"]
    compared = text[text.index("compared with base, on the same examples") :].splitlines()
    assert " ".join(compared[2].split()) == "id sft +16.7 [+6.4, +25.8] 0.002 * +1.00 [+0.42, +1.58] 0.0011 *"
    assert " ".join(compared[3].split()) == "ood sft +8.3 [+0.6, +15.5] 0.062 +0.50 [+0.07, +0.93] 0.024 *"
    assert "[ ] 95 % interval; * p < 0.05 after Holm's correction for 2 comparisons\n" in text
    assert "40 samples are new, 200 are from earlier runs\n" in text
    assert text.endswith("--failures shows wrong answers of every kind\n")


@pytest.mark.parametrize("width", [80, 40])
def test_nothing_is_wider_than_the_terminal(show: Show, width: int):
    """Tables part into several, and every figure stays whole on its line, with failures and long names too."""
    long = [f"runs/general_points/{name}/checkpoint-{n}" for name, n in (("sft", 1100), ("rl", 15), ("out", 7))]
    report = summarise("sums", SETTINGS, models(*long, losses=True))
    text = show(report, True, width)
    assert widest(text) <= width
    words = text.split()
    for row in report.models:
        for score in row.scores.values():
            assert f"{100 * score.accuracy.value:.1f}" in words
            assert f"{score.loss_per_sequence.value:.2f}" in words  # type: ignore[union-attr]
    for comparison in report.comparisons:
        value, _, interval = change(comparison.differences["accuracy"], 100, 1).partition(" ")
        assert value in words
        assert interval in text
    assert "…kpoint-1100" in text if width == 40 else "checkpoint-1100" in text


def test_names_that_end_alike_stay_whole(show: Show):
    """Names are cut only where the ends tell them apart."""
    names = [f"runs/{kind}/a/very/long/way/to/checkpoint-100" for kind in ("sft", "rl")]
    text = show(summarise("sums", {}, models(*names)), width=80)
    assert "…" not in text
    assert show(summarise("sums", {}, models("runs/one/two/three/four/five", "base")), width=40).count("…") > 0


def test_a_pipe_has_no_width(show: Show):
    """In a pipe every table is one, no line is folded, no name cut, no colour set."""
    name = "runs/" + 30 * "deep/" + "model"
    text = show(summarise("sums", SETTINGS, models("base", name, losses=True)))
    (row,) = [line for line in text.splitlines() if line.startswith(name)]
    assert row.split()[1:] == ["33.3", "[22.7,", "45.9]", "16.7", "[", "9.3,", "28.0]"]
    assert "\x1b" not in text
    assert "accuracy, points" in text
    assert "loss a sequence" in text[text.index("accuracy, points") :].splitlines()[0]


def test_one_attempt_needs_no_columns_for_retries(show: Show):
    """Where every episode had one attempt, the first try and the number of attempts say nothing."""
    once = show(summarise("sums", {}, models("base", tries=1)))
    assert "attempts" not in once
    assert "try" not in once
    assert "attempts" in show(summarise("sums", {}, models("base")))


def test_one_model_has_nothing_to_be_compared_with(show: Show):
    """No comparisons, no star, no words about them."""
    text = show(summarise("sums", {}, models("base")))
    assert "compared" not in text
    assert "*" not in text


def test_better_is_green_and_worse_is_red(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """More solved is better, more nats are worse; what does not count has no colour."""
    options = {"highlight": False, "markup": False, "force_terminal": True, "color_system": "standard"}
    monkeypatch.setattr(console_module, "make_console", lambda: Console(width=200, **options))
    poor, good = models("poor", "good", losses=True)
    for pair, colour in (((poor, good), "\x1b[32m"), ((good, poor), "\x1b[31m")):
        report = summarise("sums", {}, pair)
        print_report(report, False)
        text = capsys.readouterr().out
        differences = report.comparisons[0].differences
        assert (differences["accuracy"].value > 0) == (differences["loss_per_token"].value < 0)
        assert colour + change(differences["accuracy"], 100, 1) in text
        assert colour + change(differences["loss_per_token"], 1, 3) in text
    print_report(summarise("sums", {}, [poor, scored("same", poor.samples)]), False)
    text = capsys.readouterr().out
    assert "+0.0 [" in text
    assert "\x1b[31m" not in text
    assert "\x1b[32m" not in text


def test_failures_are_quoted_safely(show: Show):
    """Kinds with counts and examples; what a model wrote steers no terminal, and is no markup."""
    hostile = "\x1b[31mred[/bold]\nnew\tline \u202e"
    wrong = [sample(0, UNPARSABLE, completions=(hostile,)), sample(2, "wrong value", completions=("",))]
    samples = [*wrong, sample(1, CORRECT)]
    text = show(summarise("sums", {}, [scored("base", samples)]), True)
    assert "base, id  2 of 3 answers are wrong\n" in text
    assert "  unparsable  1 answers, 33 %\n" in text
    assert "    example 0, attempt 1: unparsable.\n      asked: What is 0 + 1?\n" in text
    assert "      answer: \\x1b[31mred[/bold] new line \\u202e\n" in text
    assert "      answer: nothing\n" in text
    assert "--failures" not in text


def test_losses_alone(show: Show):
    """Where only losses were scored there is no table of answers."""
    text = show(summarise("sums", {}, [scored("base", (), [loss(i, 2.0 + i, 4) for i in range(9)])]))
    assert "accuracy" not in text
    assert "1.500 [0.974, 2.026]" in text


def test_metrics_of_the_harness(show: Show):
    """Figures of lm-evaluation-harness by task, models side by side, compared by document."""
    zero, one = ({str(i): float(i % 4 < k) for i in range(40)} for k in (1, 3))
    a = scored("base", metrics=[metric("acc", 0.25, zero), Metric("arc", "ppl", 9.5, None, 40, higher_is_better=False)])
    b = scored("sft", metrics=[metric("acc", 0.75, one)])
    text = show(summarise("lm_eval:arc", {}, [a, b]), width=80)
    rows = [line.split() for line in text.splitlines()]
    assert ["arc", "acc", "↑", "0.250", "[0.142,", "0.402]", "0.750", "[0.598,", "0.858]"] in rows
    assert ["ppl", "↓", "9.500", "-"] in rows
    assert ["arc", "sft", "+0.500", "[+0.318,", "+0.634]", "<0.0001", "*"] in rows


def test_figures():
    """Numbers as they are shown, their signs, their gaps where nothing is known."""
    nan, inf = float("nan"), float("inf")
    assert share_in(Estimate(0.175, 0.132, 0.229, 234)) == "17.5 [13.2, 22.9]"
    assert share_in(Estimate(0.0, 0.0, 0.016, 234)) == "0.0 [ 0.0,  1.6]"
    assert number_in(Estimate(1234.5, 1200, 1300, 9), 1) == "1,234.5 [1,200.0, 1,300.0]"
    assert number_in(Estimate(2, -inf, inf, 9), 0) == "2"
    assert number_in(Estimate(nan, -inf, inf, 0), 2) == number_in(None, 2) == "-"
    assert change(Difference(-0.05, -0.1, 0.001, 9, 0.1), 100, 1) == "-5.0 [-10.0, +0.1]"
    assert change(Difference(1, -inf, inf, 9, 1), 1, 0) == "+1"
    assert change(Difference(nan, -inf, inf, 0, 1), 1, 0) == "-"


def test_p_values_are_marked_by_the_adjusted_one():
    """The star follows Holm's correction, not the p-value beside it."""
    assert p_value(Difference(1, 0, 2, 9, 0.02)) == "0.02 *"
    assert p_value(Difference(1, 0, 2, 9, 0.02, adjusted=0.06)) == "0.02  "
    assert p_value(Difference(1, 0, 2, 9, 0.00001, adjusted=0.0001)) == "<0.0001 *"


def test_settings_line():
    """Nested settings in one line; what is empty or long is not spelt out, nor what every task has."""
    settings = {
        "kind": "answers",
        "parameters": {"cards": 4},
        "prompt": None,
        "chat": True,
        "stop": ("a", "b"),
        "engine_options": {},
    }
    assert settings_line(settings) == "cards 4, chat on, stop a, b"
    assert settings_line({"chat_template": "{% for %}" * 20}) == "chat_template given"
    assert one_line("a\n\x07b ") == "a \\x07b"


# Tasks


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]):
    """Name, summary, splits, parameters with defaults, kinds of failures."""
    print_tasks({"sums": Sums})
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "sums  Add two numbers; out of distribution they are larger.",
        "splits      id   in distribution",
        "            ood  out of distribution",
        "parameters  top = 100",
        "failures    unparsable, wrong value",
        "attempts    3, of up to 256 tokens",
        "",
        "lm_eval:NAME  A task, a group or a task file of lm-evaluation-harness.",
    ]


def test_tasks_that_need_parameters_are_listed(capsys: pytest.CaptureFixture[str]):
    """A task that cannot be made without a parameter is listed all the same."""

    class Needy(Sums):
        """Needs a file."""

        name: ClassVar[str] = "needy"
        path: str

    print_tasks({"needy": Needy})
    text = capsys.readouterr().out
    assert "path (needed)" in text
    assert "by parameters" in text


def test_all_tasks_can_be_listed(capsys: pytest.CaptureFixture[str]):
    """Each of ours has a summary and splits."""
    print_tasks(TASKS)
    text = capsys.readouterr().out
    for name in TASKS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
        assert line.endswith((".", ":"))
