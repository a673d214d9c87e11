"""Sweeps that were stopped, or killed, at any moment: they go on, and nothing is done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evalkit.sweeps.scoring
import evalkit.sweeps.sweep
from evalkit.journal import Journal
from tests.evalkit.sweeps.conftest import SPEC, TASK, Make, Pair, Sweeping, Told, WeighedEngine, drawn, nearness
from tests.pairs import files

pytestmark = pytest.mark.usefixtures("without_figures")
SMALL = {**SPEC, "evaluation": {**SPEC["evaluation"], "n": 6}}


def plain(result: Any) -> dict[str, Any]:
    """A result as it is written."""
    found: dict[str, Any] = json.loads(json.dumps(result.json()))
    return found


class Whole:
    """A sweep that nothing has stopped."""

    def __init__(self, pair: Pair, out: Path) -> None:
        told, made = Told(), WeighedEngine(nearness)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evalkit.sweeps.scoring, "make_engine", lambda *_: made)
            patch.setattr(evalkit.sweeps.sweep, "draw_pareto", drawn)
            self.result = evalkit.sweeps.sweep.sweep(SMALL, pair, out, task=TASK, workers=1, progress=told)
        self.out, self.answers, self.tensors = out, made.answers, told.tensors


@pytest.fixture(scope="module")
def whole(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The same sweep without a stop."""
    return Whole(pair, tmp_path_factory.mktemp("whole") / "out")


class Stopped(Exception):
    """As if the process had been killed here."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at that line of any journal: odd ones once it is written, even ones before."""
    put = Journal.put
    steps = iter(range(1, step + 1))

    def stopping(self: Journal, name: str, row: Any) -> None:
        now = next(steps, None)
        if now == step and step % 2 == 0:
            raise Stopped
        put(self, name, row)
        if now == step:
            raise Stopped

    monkeypatch.setattr(Journal, "put", stopping)


@pytest.mark.parametrize("step", [1, 2, 13, 24, *range(25, 35), 47, 70, 71, 81])
def test_a_sweep_that_was_stopped_goes_on(
    sweeping: Sweeping, engine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Whole, step: int
) -> None:
    """Wherever it stops, nothing is made or finished twice, and it comes to the same result in the same bytes."""
    first = engine(nearness)
    one, two = Told(), Told()
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(Stopped):
            sweeping(SMALL, progress=one)
    assert first.closed
    second = engine(nearness)
    result = sweeping(SMALL, progress=two)
    assert plain(result) == plain(whole.result)
    assert files(tmp_path / "out" / "checkpoints") == files(whole.out / "checkpoints")
    asked = first.answers + second.answers
    in_flight = sum(asked.values()) - sum(whole.answers.values())
    assert in_flight in (0, 1)
    assert one.tensors + two.tensors == whole.tensors


def test_kills_at_any_moment(pair: Pair, tmp_path: Path) -> None:
    """Killed in the middle of system calls, a sweep goes on to the same result; see `killed`."""
    arguments = json.dumps({name: str(path) for name, path in pair.items()}), str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.evalkit.sweeps.killed", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5
