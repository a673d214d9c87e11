"""Runs of fine-tuning from configuration to report: what they leave, and how they go on after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer

from surgery.checkpoint import open_checkpoint
from tests.tiny_models import save_tiny
from tests.trainers.conftest import Materials, alike, rows
from trainers import api
from trainers.averaging import FILE as AVERAGE
from trainers.averaging import WeightAverage
from trainers.directory import RunDirectory
from trainers.errors import DataError, RunError, TrainingError
from trainers.progress import Silence
from trainers.report import Report


@pytest.fixture(scope="module")
def whole(materials: Materials, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    api.train("sft", materials.config(out))
    return out


def left(out: Path) -> dict[str, bytes]:
    """All that a run leaves, but for what says where it lies and figures' images."""
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {
        name: path.read_bytes().replace(str(out).encode(), b"OUT")
        for name, path in files.items()
        if path.suffix not in (".png", ".svg") and path.name != "run.json"
    }


def same(out: Path, whole: Path) -> None:
    """Two runs left the same weights bit for bit, the same log and the same report."""
    found, expected = left(out), left(whole)
    assert sorted(found) == sorted(expected)
    for name in expected:
        if name.endswith("training.json"):
            a, b = json.loads(found[name]), json.loads(expected[name])
            assert a["figures"] == b["figures"]
            assert a["files"] == b["files"]
        else:
            assert found[name] == expected[name], name


def test_what_a_run_leaves(whole: Path) -> None:
    """Checkpoints, links to the last and the best one, log, table, figures; no state of training."""
    assert {path.name for path in whole.iterdir()} == {
        "checkpoint-2", "checkpoint-4", "checkpoint-5", "final", "inter-sft", "checkpoints.json", "log.jsonl",
        "losses.png", "losses.svg", "report.json", "run.json",
    }  # fmt: skip
    assert (whole / "final").readlink() == Path("checkpoint-5")
    for name in ("checkpoint-2", "final", "inter-sft"):
        assert open_checkpoint(str(whole / name)).tensors
    report = Report.from_json(json.loads((whole / "report.json").read_bytes()))
    best = min(report.checkpoints, key=lambda row: row.losses["ood"])
    assert report.best == best.step
    assert (whole / "inter-sft").readlink() == Path(best.name)
    assert [row.step for row in report.checkpoints] == [2, 4, 5]


def test_when_losses_are_measured(whole: Path) -> None:
    """Before the first step, every `loss_every` steps, and at each checkpoint; each once."""
    assert [row["step"] for row in rows(whole) if "id_loss" in row] == [0, 2, 4, 5]
    assert [row["step"] for row in rows(whole) if "loss" in row] == [1, 2, 3, 4, 5]
    for path in whole.glob("checkpoint-*/training.json"):
        manifest = json.loads(path.read_bytes())
        (measured,) = (row for row in rows(whole) if row["step"] == manifest["step"] and "ood_loss" in row)
        assert manifest["figures"]["ood_loss"] == measured["ood_loss"]


def test_losses_at_checkpoints_between(materials: Materials, tmp_path: Path) -> None:
    """Whatever `loss_every` is, a checkpoint has its losses, also where an epoch ends with it."""
    api.train("sft", materials.config(tmp_path / "out", loss_every=100, save_every=5, epochs=2))
    assert [row["step"] for row in rows(tmp_path / "out") if "id_loss" in row] == [0, 5, 10]


def test_resuming_a_finished_run(whole: Path, materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives its report again, and nothing is trained."""
    monkeypatch.setattr(Trainer, "train", None)
    report = api.train("sft", materials.config(whole), resume=True)
    assert report.json() == json.loads((whole / "report.json").read_bytes())


class Killed(BaseException):
    """Nothing of ours catches it."""


def killing(real: Callable[..., Any], at: int, after: bool) -> Callable[..., Any]:
    """A function that ends everything at its n-th call, before or after it has done its work."""
    calls = iter(range(1, 1000))

    def wrapped(*arguments: Any, **options: Any) -> Any:
        fatal = next(calls) == at
        if fatal and not after:
            raise Killed
        result = real(*arguments, **options)
        if fatal:
            raise Killed
        return result

    return wrapped


KILLS: Mapping[str, tuple[Any, str, int, bool]] = {
    "in the first step": (Trainer, "training_step", 1, True),
    "in the fourth step": (Trainer, "training_step", 8, False),
    "before a checkpoint has its name": (Path, "replace", 6, False),
    "between checkpoint and state": (Trainer, "_save_checkpoint", 2, False),
    "while a state is written": (Trainer, "_save_rng_state", 2, False),
    "before a state is sealed": (RunDirectory, "seal", 2, False),
    "after a state is sealed": (RunDirectory, "seal", 2, True),
    "before the links": (RunDirectory, "link", 1, False),
    "between the links": (RunDirectory, "link", 2, False),
    "before the report": (RunDirectory, "finish", 1, False),
    "after the report": (RunDirectory, "finish", 1, True),
}


@pytest.mark.parametrize("kill", KILLS)
def test_goes_on_after_a_kill(
    kill: str, whole: Path, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a run was killed, going on leaves the same as a run that was not, bit for bit."""
    owner, name, at, after = KILLS[kill]
    config = materials.config(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing(getattr(owner, name), at, after))
        with pytest.raises(Killed):
            api.train("sft", config)
    api.train("sft", config, resume=True)
    same(tmp_path / "out", whole)


def test_muon_goes_on_after_a_kill(materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The momentum of Muon and the moments of AdamW are saved as well, and the rate falls as it would have."""
    optimizer = {"name": "muon", "learning_rate": 1e-3, "schedule": "wsd", "warmup": 1, "decay": 2}
    api.train("sft", materials.config(tmp_path / "whole", optimizer=optimizer))
    config = materials.config(tmp_path / "out", optimizer=optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "seal", killing(RunDirectory.seal, 2, True))
        with pytest.raises(Killed):
            api.train("sft", config)
    api.train("sft", config, resume=True)
    same(tmp_path / "out", tmp_path / "whole")


AVERAGED: Mapping[str, tuple[Any, str, int, bool]] = {
    "in the fourth step": (Trainer, "training_step", 8, False),
    "while measuring": (Trainer, "get_eval_dataloader", 6, True),
    "before the average is written": (WeightAverage, "save", 2, False),
    "before a state has its name": (WeightAverage, "save", 1, True),
    "after a state is sealed": (RunDirectory, "seal", 2, True),
}


@pytest.mark.parametrize("kill", AVERAGED)
def test_an_average_goes_on_after_a_kill(
    kill: str, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average and the weights that it is of are both in the state."""
    owner, name, at, after = AVERAGED[kill]
    api.train("sft", materials.config(tmp_path / "whole", average=0.5))
    config = materials.config(tmp_path / "out", average=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing(getattr(owner, name), at, after))
        with pytest.raises(Killed):
            api.train("sft", config)
    api.train("sft", config, resume=True)
    same(tmp_path / "out", tmp_path / "whole")


START = "import json, sys; from trainers import api; api.train('sft', json.loads(sys.argv[1]))"


def test_goes_on_after_sigkill(whole: Path, materials: Materials, tmp_path: Path) -> None:
    """A process that dies without a word, some time after a state was saved, costs nothing but the time since."""
    out = tmp_path / "out"
    config = materials.config(out)
    with subprocess.Popen([sys.executable, "-c", START, json.dumps(config)], env=alike()) as process:
        while process.poll() is None and not any(out.glob("resume/checkpoint-*/complete")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (out / "report.json").exists()
    api.train("sft", config, resume=True)
    same(out, whole)


def test_another_configuration_does_not_go_on(whole: Path, materials: Materials) -> None:
    """What differs is named, nothing is trained."""
    with pytest.raises(RunError, match=r"begun with others of these: `loss_every`, `seed`; going on"):
        api.train("sft", materials.config(whole, seed=4, loss_every=3), resume=True)


def test_other_data_do_not_go_on(materials: Materials, tmp_path: Path) -> None:
    """Records that were changed in their files make another run, those that are measured too."""
    held = tmp_path / "held.jsonl"
    held.write_bytes(materials.ood.read_bytes())
    config = materials.config(tmp_path / "out", held_out={"ood": {"file": str(held)}}, steps=1)
    api.train("sft", config)
    held.write_bytes(held.read_bytes().replace(b"1960", b"1961"))
    with pytest.raises(RunError, match="begun with others of these: the data; going on"):
        api.train("sft", config, resume=True)


def test_the_template_belongs_to_the_run(materials: Materials, tmp_path: Path) -> None:
    """A template in a file goes with the checkpoints; once it is changed, the run does not go on."""
    template = tmp_path / "t.jinja"
    source = (materials.model / "chat_template.jinja").read_text()
    template.write_text(source.replace("{% for", "{# ours #}{% for", 1))
    config = materials.config(tmp_path / "out", chat_template=str(template), steps=1)
    api.train("sft", config)
    assert "ours" in (tmp_path / "out" / "final" / "chat_template.jinja").read_text()
    template.write_text(source)
    with pytest.raises(RunError, match="the file `chat_template`"):
        api.train("sft", config, resume=True)


def test_keeps_the_best(materials: Materials, tmp_path: Path) -> None:
    """With `keep: best` no more than the last and the best checkpoint stay, and the table knows which are gone."""
    config = materials.config(tmp_path / "out", keep="best", save_every=1, loss_every=1, epochs=2)
    config["optimizer"] = {"learning_rate": 3e-2, "schedule": "constant"}  # too high to fall all along
    report = api.train("sft", config)
    losses = {row.step: row.losses["ood"] for row in report.checkpoints}
    assert report.best == min(losses, key=lambda step: losses[step])
    stay = {f"checkpoint-{step}" for step in (10, report.best)}
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == stay
    assert {row.name for row in report.checkpoints if row.kept} == stay
    assert (tmp_path / "out" / "inter-sft" / "model.safetensors").is_file()


def test_the_best_survives_a_kill(materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with `keep: best` that is killed right after it dropped a checkpoint ends as one that is not."""
    keys: dict[str, Any] = {"keep": "best", "save_every": 1, "optimizer": {"learning_rate": 3e-2}}
    api.train("sft", materials.config(tmp_path / "whole", **keys))
    config = materials.config(tmp_path / "out", **keys)
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "drop", killing(RunDirectory.drop, 1, True))
        with pytest.raises(Killed):
            api.train("sft", config)
    api.train("sft", config, resume=True)
    same(tmp_path / "out", tmp_path / "whole")


def test_nothing_held_out(materials: Materials, tmp_path: Path) -> None:
    """Without held-out data there are checkpoints, but no best one, and the report says why."""
    report = api.train("sft", materials.config(tmp_path / "out", held_out={}, steps=2))
    assert report.best is None
    assert report.note is not None
    assert "name some in `held_out.id` and `held_out.ood`" in report.note
    assert not (tmp_path / "out" / "inter-sft").exists()


def test_accuracy(materials: Materials, tmp_path: Path) -> None:
    """A task's held-out problems are answered every so many steps and at the end, and are in log and report."""
    config = materials.config(
        tmp_path / "out",
        data={"task": "general_points", "n": 8},
        held_out={"n": 4},
        accuracy={"every": 2, "n": 3, "max_tokens": 4},
        steps=3,
        save_every=None,
    )
    report = api.train("sft", config)
    assert report.task == "general_points"
    found = [row["step"] for row in rows(tmp_path / "out") if "id_accuracy" in row]
    assert found == [0, 2, 3]
    (row,) = report.checkpoints
    assert {split: score.n for split, score in row.scores.items()} == {"id": 3, "ood": 3}
    assert row.scores["ood"].value == 0.0


def test_weights_that_are_destroyed(materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite ends the run; step and last good checkpoint are named."""
    step, calls = torch.optim.AdamW.step, iter(range(1, 100))

    def spoiling(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> None:
        step(self, *arguments, **options)
        if next(calls) == 2:
            self.param_groups[0]["params"][0].data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    with pytest.raises(TrainingError) as caught:
        api.train("sft", materials.config(tmp_path / "out", save_every=1))
    message = str(caught.value)
    assert message.startswith("step 2: ")
    assert "is not finite; lower `optimizer.learning_rate`" in message
    assert message.endswith(f"; the last good checkpoint is `{tmp_path / 'out' / 'checkpoint-1'}`")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-1")
    assert all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


def test_a_checkpoint_with_nan(materials: Materials, tmp_path: Path) -> None:
    """NaN in the weights that a run begins with is found before the first step, where something is measured."""
    model = save_tiny(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for name, held_out, step in (("a", {}, 1), ("b", materials.config(tmp_path)["held_out"], 0)):
        changed = replace(materials, model=model)
        with pytest.raises(TrainingError, match=rf"^step {step}: .*is not finite.*; no checkpoint was written before$"):
            api.train("sft", changed.config(tmp_path / name, held_out=held_out))


def test_nothing_begins_with_faults(materials: Materials, tmp_path: Path) -> None:
    """Data that overlap are found before there is a directory."""
    config = materials.config(tmp_path / "out", held_out={"id": {"file": str(materials.learned)}})
    with pytest.raises(DataError, match="are among the training records"):
        api.train("sft", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class Stopping(Silence):
    """Ends the run at its third step; the state after the second lies there then."""

    steps = 0

    def step(self, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        self.steps += 1
        if self.steps == 3:
            raise Killed


STATE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", AVERAGE)


@pytest.mark.parametrize("damage", ["cut", "gone", "overwritten"])
@pytest.mark.parametrize("file", STATE)
def test_a_damaged_state_is_one_message(materials: Materials, tmp_path: Path, file: str, damage: str) -> None:
    """It names the state, and what to do."""
    config = materials.config(tmp_path / "out", average=0.9)
    with pytest.raises(Killed):
        api.train("sft", config, progress=Stopping())
    path = tmp_path / "out" / "resume" / "checkpoint-2" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else bytes(len(content)))
    what = "cannot be read" if damage == "overwritten" else f"is damaged: `{file}` missing"
    with pytest.raises(RunError, match=rf"the state `.*/resume/checkpoint-2` {what} .*`--overwrite`"):
        api.train("sft", config, resume=True)


def test_tensorboard(materials: Materials, tmp_path: Path) -> None:
    """The figures of the log are in TensorBoard's events, too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    api.train("sft", materials.config(out, report_to=["tensorboard"], steps=2))
    (events,) = out.rglob("events.out.tfevents.*")
    known = EventAccumulator(str(events.parent))
    known.Reload()
    names = known.Tags()["scalars"]
    (losses,) = ([event.value for event in known.Scalars(name)] for name in names if name.endswith("/loss"))
    assert losses == pytest.approx([row["loss"] for row in rows(out) if "loss" in row])
    assert any("ood_loss" in name for name in names)
    api.train("sft", materials.config(out, steps=2), resume=True)


def full(*_: Any, **__: Any) -> Any:
    """What torch raises where the disk is full."""
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")


def test_a_state_that_does_not_fit(materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the state cannot be written, one message says so; the checkpoint stays, and the run goes on from before."""
    config = materials.config(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match=r"cannot save the state of training after step 2 in .*make room and go on"):
            api.train("sft", config)
    assert not [path for path in (tmp_path / "out" / "resume").rglob("*") if path.is_file()]
    assert api.train("sft", config, resume=True).steps == 5
