"""Runs of PPO from configuration to report, on tiny models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evalkit.tasks import TASKS
from surgery.checkpoint import open_checkpoint
from tests.tiny_models import save_tiny
from tests.trainers.conftest import alike
from tests.trainers.letters import Letters
from trainers import data
from trainers.api import load_config, train
from trainers.config import PpoConfig
from trainers.errors import ConfigError, RunError, TrainingError
from trainers.order import Order
from trainers.ppo_learner import Learner, Turns
from trainers.progress import Silence
from trainers.report import Report
from trainers.rollout import Episode

GAME: Mapping[str, Any] = {
    "data": {"task": "general_points", "n": 6},
    "device": "cpu",
    "precision": "float32",
    "attempts": 2,
    "updates": 3,
    "episodes": 4,
    "epochs": 2,
    "save_every": 1,
    "micro_batch_size": 3,
    "rollout": {"max_tokens": 12},
    "success": {"every": 2, "n": 4},
    "optimizer": {"learning_rate": 1e-4},
    "kl": 0.01,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tied head."""
    return save_tiny(tmp_path_factory.mktemp("tiny"), tied=True)


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A run of three updates."""
    out = tmp_path_factory.mktemp("runs") / "ppo"
    return out, train("ppo", GAME, model=model, out=out)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_checkpoints_figures_and_a_report(run: tuple[Path, Report]) -> None:
    """Three checkpoints with manifests, a log line an update, figures, links; no state of training is left."""
    out, report = run
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoints.json", "final", "log.jsonl", "report.json",
        "run.json", "updates.png", "updates.svg",
    ]  # fmt: skip
    assert (out / "final").resolve() == (out / "checkpoint-3").resolve()
    assert [row.step for row in report.checkpoints] == [1, 2, 3]
    assert Report.from_json(json.loads((out / "report.json").read_bytes())) == report
    manifest = json.loads((out / "checkpoint-2" / "training.json").read_bytes())
    assert (manifest["trainer"], manifest["step"], manifest["data"]["seed"]) == ("ppo", 2, 0)
    assert manifest["config"]["episodes"] == 4


def test_the_log_tells_how_it_goes(run: tuple[Path, Report]) -> None:
    """Every update has its figures; success is measured at the start, when it is due, and at checkpoints."""
    found = rows(run[0])
    assert [row["step"] for row in found] == [0, 1, 2, 3]
    wanted = {
        "reward", "success", "turns", "prompt_tokens", "response_tokens", "reference_kl", "entropy",
        "explained_variance", "ratio_mean", "ratio_min", "ratio_max", "clip_fraction", "kl", "policy_loss",
        "value_loss", "grad_norm", "learning_rate", "seconds", "id_success", "ood_success", "step",
    }  # fmt: skip
    assert [set(row) for row in found[1:]] == [wanted] * 3
    assert set(found[0]) == {"step", "id_success", "ood_success"}
    assert 1 <= found[1]["turns"] <= 2
    assert found[1]["reference_kl"] == 0 != found[2]["reference_kl"]


def test_checkpoints_are_ordinary(run: tuple[Path, Report], model: Path) -> None:
    """They load in transformers and open in surgery, with the parent's files beside them and no value head."""
    final = run[0] / "final"
    loaded, report = AutoModelForCausalLM.from_pretrained(final, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert open_checkpoint(final).tensors.keys() == open_checkpoint(model).tensors.keys()
    assert (final / "config.json").read_bytes() == (model / "config.json").read_bytes()
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    moved = [name for name, tensor in loaded.state_dict().items() if not tensor.equal(before[name])]
    assert len(moved) == len(before)


def test_a_finished_run_is_not_done_again(run: tuple[Path, Report], model: Path) -> None:
    """`resume` gives its report."""
    assert train("ppo", GAME, model=model, out=run[0], resume=True) == run[1]


def test_a_killed_run_goes_on_to_the_same_weights(run: tuple[Path, Report], model: Path, tmp_path: Path) -> None:
    """Killed while the third update is played, and gone on with: weights, log and report as if nothing had been."""
    out = tmp_path / "ppo"
    code = f"""
import os, signal
from trainers.api import train
from trainers.progress import Silence

class Killer(Silence):
    def phase(self, name, total, done=0):
        if name.startswith("update 3") and name.endswith("learning"):
            os.kill(os.getpid(), signal.SIGKILL)

train("ppo", {dict(GAME)!r}, model={str(model)!r}, out={str(out)!r}, progress=Killer())
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=alike())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (out / "resume").iterdir()] == ["checkpoint-2"]
    resumed = train("ppo", GAME, model=model, out=out, resume=True)
    for step in (1, 2, 3):
        found, expected = (load_file(o / f"checkpoint-{step}" / "model.safetensors") for o in (out, run[0]))
        assert all(tensor.equal(expected[name]) for name, tensor in found.items())
    without = [[{**row, "seconds": 0} for row in rows(o)] for o in (out, run[0])]
    assert without[0] == without[1]
    assert [row.scores for row in resumed.checkpoints] == [row.scores for row in run[1].checkpoints]


def test_a_known_optimum_is_learned(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one letter in a hundred to nearly always, and on problems that were not played as well."""
    monkeypatch.setitem(TASKS, "letters", Letters)  # type: ignore[index]
    config = {
        "data": {"task": "letters", "n": 64},
        "device": "cpu",
        "updates": 30,
        "episodes": 64,
        "epochs": 2,
        "micro_batch_size": 64,
        "clip": 0.2,
        "entropy": 0.01,
        "success": {"every": 30, "n": 32},
        "optimizer": {"learning_rate": 3e-3, "max_grad_norm": 1.0},
    }
    train("ppo", config, model=model, out=tmp_path / "out")
    found = rows(tmp_path / "out")
    assert found[0]["ood_success"] < 0.2
    assert found[1]["success"] < 0.2
    assert found[-1]["success"] > 0.9
    assert found[-1]["id_success"] == found[-1]["ood_success"] == 1


def test_a_gradient_that_is_not_finite_names_the_last_good_checkpoint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with the update and that checkpoint in the message, and can go on from there."""
    judge = Learner.judge

    def broken(self: Learner, episodes: Sequence[Episode]) -> Turns:
        turns = judge(self, episodes)
        if self._schedule.last_epoch == 2:  # one update of two epochs is done
            turns.advantages[0] = float("nan")
        return turns

    monkeypatch.setattr(Learner, "judge", broken)
    with pytest.raises(TrainingError, match=r"update 2: the gradient is not finite.*checkpoint is `.*/checkpoint-1`$"):
        train("ppo", GAME, model=model, out=tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint-2").exists()
    monkeypatch.undo()
    report = train("ppo", GAME, model=model, out=tmp_path / "out", resume=True)
    assert [row.step for row in report.checkpoints] == [1, 2, 3]


class Stop(KeyboardInterrupt):
    """Ends a run in this process."""


class Stopping(Silence):
    """Ends the run while it learns for the second time; a state lies there then."""

    def phase(self, name: str, total: int, done: int = 0) -> None:  # noqa: ARG002
        if name == "update 2 of 3: learning":
            raise Stop


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl"])
@pytest.mark.parametrize("damage", ["cut", "gone", "overwritten"])
def test_a_damaged_state_is_one_message(model: Path, tmp_path: Path, file: str, damage: str) -> None:
    """It names the state, and what to do."""
    out = tmp_path / "out"
    with pytest.raises(Stop):
        train("ppo", GAME, model=model, out=out, progress=Stopping())
    path = out / "resume" / "checkpoint-1" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else bytes(len(content)))
    what = "cannot be read" if damage == "overwritten" else f"is damaged: `{file}` missing"
    with pytest.raises(RunError, match=rf"the state `.*/resume/checkpoint-1` {what} .*`--overwrite`"):
        train("ppo", GAME, model=model, out=out, resume=True)


def test_trackers_get_the_figures(model: Path, tmp_path: Path) -> None:
    """Those of every update, in the run's directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("ppo", {**GAME, "updates": 1, "report_to": ["tensorboard"]}, model=model, out=tmp_path / "out")
    (events,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events))
    found.Reload()
    assert {"reward", "kl", "value_loss", "id_success"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("reward")] == [1]


def test_what_is_played_is_not_measured(model: Path) -> None:
    """No problem that success is measured on has the values of one that is played, whatever the split."""
    config = load_config("ppo", {**GAME, "data": {"task": "general_points", "n": 300}}, model=model, out="o")
    assert isinstance(config, PpoConfig)
    _, played = data.problems(config.data, config.seed)
    measured = data.success_problems(config)
    assert set(measured) == {"id", "ood"}
    keys = {example.key for example in played}
    assert all(example.key not in keys for examples in measured.values() for example in examples)


def test_order_goes_through_all_problems() -> None:
    """Every problem comes once before any comes twice, in another order each time, wherever one begins."""
    order = Order(list(range(10)), seed=1)  # type: ignore[arg-type]
    whole: list[Any] = order.take(0, 30)
    assert [sorted(whole[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert whole[:10] != whole[10:20]
    assert order.take(7, 16) == whole[7:23]
    assert Order(list(range(10)), seed=2).take(0, 10) != whole[:10]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"data": {"task": "general_point"}}, Exception, r"did you mean `general_points`\?"),
        ({"rollout": {"max_tokens": 5000}}, TrainingError, r"lower `rollout.max_tokens`"),
        ({"episodes": 0}, ConfigError, r"configuration episodes: found `0`; expected 1 or more"),
        ({"ratio": "tokens"}, ConfigError, r"found `tokens`; expected `response`, `token`; did you mean `token`\?"),
        ({"rollout": {"temperature": 0}}, ConfigError, r"rollout.temperature: found `0`; expected more than 0"),
    ],
)
def test_faults_are_told(
    model: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Each names what was found and what to do."""
    with pytest.raises(kind, match=message):
        train("ppo", {**GAME, **changes}, model=model, out=tmp_path / "out")
