"""Which checkpoint is the best, and what is written of a run."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.stats import Estimate, proportion
from trainers.report import CheckpointRow, Report, best_step, mean_since, series


def row(step: int, ood: float | None = None, solved: int | None = None, kept: bool = True) -> CheckpointRow:
    """A checkpoint with an out-of-distribution loss, and so many of 64 problems solved."""
    score = None if solved is None else proportion([i < solved for i in range(64)], range(64))
    return CheckpointRow(
        step=step,
        name=f"checkpoint-{step}",
        path=f"runs/sft/checkpoint-{step}",
        kept=kept,
        losses={"id": 0.1} if ood is None else {"id": 0.1, "ood": ood},
        scores={} if score is None else {"id": proportion([True], [0]), "ood": score},
    )


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([], None),
        ([row(10), row(20)], None),  # nothing out of distribution
        ([row(10, 0.7), row(20, 0.5), row(30, 0.6)], 20),
        ([row(10, 0.7, 9), row(20, 0.5, 8), row(30, 0.6, 7)], 10),  # accuracy goes before loss
        ([row(10, 0.7, 9), row(20, 0.5, 9), row(30, 0.6, 7)], 20),  # equal accuracy: by loss
        ([row(10, 0.7, 9), row(20, 0.5, 8), row(30, 0.6)], 20),  # not every one has accuracy: by loss
        ([row(10, None, 9), row(20, 0.5, 9)], 20),
        ([row(10, None, 3), row(20, None, 9), row(30, None, 9)], 30),  # learning from grades: ties to the later
        ([row(10, None, 3), row(20, None, 9), row(30)], 20),
        ([row(10, None, 0), row(20, None, 0)], 20),
        ([row(10, 0.5), row(20, 0.5)], 20),
        ([row(10, 0.5, kept=False), row(20, 0.6)], 20),  # what is gone is no candidate
        ([row(10, 0.5, kept=False), row(20, 0.6, 4), row(30, 0.5, 3)], 20),
        ([row(10, math.nan), row(20, 0.6), row(30, math.inf)], 20),
        ([row(10, math.nan)], None),
    ],
)
def test_best_step(rows: list[CheckpointRow], best: int | None) -> None:
    """Accuracy where all have it, else loss; none where nothing was measured; whatever the order of the rows."""
    assert best_step(rows) == best_step(rows[::-1]) == best


def test_no_problems_played() -> None:
    """A share of no problems is none."""
    empty = CheckpointRow(5, "checkpoint-5", "p", scores={"ood": proportion([], [])})
    assert best_step([empty]) is None
    assert best_step([empty, row(4, 0.3)]) == 4


losses = st.lists(st.tuples(st.floats(0.01, 9), st.integers(0, 64)), min_size=1, max_size=8)


@given(losses, st.booleans())
def test_no_candidate_is_better(found: list[tuple[float, int]], accuracy: bool) -> None:
    """The best checkpoint has the highest share, or, where there is no accuracy, the lowest loss."""
    rows = [row(step, loss, solved if accuracy else None) for step, (loss, solved) in enumerate(found)]
    best = best_step(rows)
    assert best is not None
    loss, solved = found[best]
    if accuracy:
        assert solved == max(solved for _, solved in found)
        assert loss == min(loss for loss, other in found if other == solved)
    else:
        assert loss == min(loss for loss, _ in found)


def test_adding_a_worse_checkpoint_changes_nothing() -> None:
    """With `keep: best`, asking after every checkpoint finds the same one as asking at the end."""
    found = [0.9, 0.7, 0.8, 0.5, 0.6, 0.5, 0.7]
    rows: list[CheckpointRow] = []
    best = None
    for step, loss in enumerate(found):
        rows = [kept for kept in rows if kept.step == best] + [row(step, loss)]
        best = best_step(rows)
    assert best == best_step([row(step, loss) for step, loss in enumerate(found)]) == 5


def test_a_report_comes_back() -> None:
    """It is written as plain JSON, and read again to the same report."""
    rows = (
        CheckpointRow(
            140, "checkpoint-140", "o/checkpoint-140", True, 0.5, {"id": 0.4, "ood": 0.6}, row(1, 1, 9).scores
        ),
        CheckpointRow(200, "checkpoint-200", "o/checkpoint-200", kept=False, reward=-2.5),
    )
    report = Report("sft", "base", "o", 200, rows, best=140, note="é", task="general_points")
    plain = json.loads(json.dumps(report.json(), allow_nan=False))
    assert Report.from_json(plain) == report
    assert plain["best"] == 140
    assert plain["confidence"] == 0.95
    assert plain["checkpoints"][0]["scores"]["ood"]["n"] == 64


def test_what_is_not_finite_is_written_as_null() -> None:
    """JSON has no numbers for it; read again, it is not measured."""
    score = Estimate(math.nan, -math.inf, math.inf, 0)
    lost = CheckpointRow(1, "checkpoint-1", "p", loss=math.nan, losses={"ood": math.inf}, scores={"ood": score})
    plain = json.loads(json.dumps(lost.json(), allow_nan=False))
    assert (plain["loss"], plain["losses"]) == (None, {"ood": None})
    assert plain["scores"] == {"ood": {"value": None, "low": None, "high": None, "n": 0}}
    again = CheckpointRow.from_json(plain)
    assert again.json() == lost.json()
    assert best_step([again]) is None


LOG = [
    {"step": 1, "loss": 2.0},
    {"step": 2, "loss": None},
    {"step": 2, "ood_loss": 3.0},
    {"step": 3, "loss": 1.0, "grad_norm": 0.1},
    {"step": 3, "loss": 1.5},
    {"step": 5, "loss": 0.5},
]


def test_series() -> None:
    """The rows that have the figure, null as nan; a row written twice counts as it was written last."""
    steps, values = series(LOG, "loss")
    assert steps == [1, 2, 3, 5]
    assert values == pytest.approx([2.0, math.nan, 1.5, 0.5], nan_ok=True)
    assert series(LOG, "ood_loss") == ([2], [3.0])
    assert series(LOG, "reward") == ([], [])
    assert series([*LOG[3:], *LOG[:3]], "loss")[0] == [1, 2, 3, 5]


def test_mean_since() -> None:
    """The mean over the steps after one; of nothing, or with a figure that is no number, there is none."""
    assert mean_since(LOG, "loss", 2) == 1.0
    assert mean_since(LOG, "loss", 1) is None
    assert mean_since(LOG, "loss", 5) is None
