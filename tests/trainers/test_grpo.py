"""GRPO: what TRL is handed, that it learns, that it goes on after a kill, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evalkit.draw import Draw
from evalkit.engines.base import Model
from evalkit.rendering import Renderer
from evalkit.run import Asking
from evalkit.task import CORRECT, Data, Grade, Task
from evalkit.tasks import TASKS
from tests.tiny_models import save_tiny, tokenizer
from tests.trainers.conftest import alike
from trainers import data
from trainers.api import load_config, train
from trainers.config import GrpoConfig
from trainers.errors import ConfigError, TrainingError
from trainers.player import Player
from trainers.progress import Silence
from trainers.rollout import Episode

ROOT = Path(__file__).parents[2]
LETTER = "e"  # which the tiny model of seed 2 gives now and then


class Letter(Task):
    """Say the letter that is wanted."""

    name: ClassVar[str] = "letter"
    version: ClassVar[int] = 1
    max_tokens: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = ("wrong letter",)

    def draw(self, split: str, draw: Draw) -> Data:
        low = {"id": 0, "ood": 1000}[split]
        return {"number": draw.between(low, low + 999)}

    def question(self, data: Data) -> str:
        return f"Which letter{'?' * (data['number'] % 7)} {data['number']}"

    def grade(self, data: Data, answer: str) -> Grade:  # noqa: ARG002
        right = answer == LETTER
        return Grade(CORRECT if right else "wrong letter", float(right), "Right." if right else "Another letter.")

    def reference(self, data: Data) -> str:  # noqa: ARG002
        return LETTER


@pytest.fixture(autouse=True)
def _letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "letter", Letter)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), seed=2)


def settings(**others: Any) -> dict[str, Any]:
    """A small run that learns."""
    return {
        "data": {"task": "letter", "n": 40},
        "precision": "float32",
        "updates": 4,
        "prompts": 4,
        "generations": 6,
        "epochs": 2,
        "micro_batch_size": 8,
        "optimizer": {"learning_rate": 3e-3, "schedule": "constant"},
        "success": {"every": 2, "n": 6},
        **others,
    }


def run(tiny: Path, out: Path, resume: bool = False, progress: Any = None, **others: Any) -> Any:
    return train("grpo", settings(**others), model=tiny, out=out, resume=resume, progress=progress)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


class Recorded:
    """Every episode that was played, and every call of the network with its answers, by the run under test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from trainers import grpo

        self.episodes: dict[int, Sequence[Episode]] = {}
        self.inputs: list[tuple[Mapping[str, Any], torch.Tensor]] = []
        play, loss = Player.play, grpo._Trainer._compute_loss

        def playing(player: Player, update: int) -> list[Episode]:
            self.episodes[update] = episodes = play(player, update)
            return episodes

        def computing(trainer: Any, model: Any, inputs: Any) -> torch.Tensor:
            found = loss(trainer, model, inputs)
            self.inputs.append((inputs, trainer._logprobs.clone()))
            return found

        monkeypatch.setattr(Player, "play", playing)
        monkeypatch.setattr(grpo._Trainer, "_compute_loss", computing)


def test_learns(tiny: Path, tmp_path: Path) -> None:
    """From a letter among others to near certainty, on problems that were not played, too."""
    more: dict[str, Any] = {
        "updates": 12,
        "prompts": 8,
        "generations": 8,
        "micro_batch_size": 64,
        "success": {"every": 12, "n": 20},
    }
    report = run(tiny, tmp_path / "run", **more)
    first, *_, last = (row for row in rows(tmp_path / "run") if "id_success" in row)
    assert first["id_success"] < 0.5
    assert last["id_success"] == last["ood_success"] == 1
    played = [row["success"] for row in rows(tmp_path / "run") if "success" in row]
    assert played[0] < 0.4
    assert played[-1] > 0.9
    assert report.checkpoints[-1].scores["id"].value == 1


def test_one_update_is_one_round_of_episodes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each update plays once and learns `epochs` times from all of it; problems come in the run's order."""
    seen = Recorded(monkeypatch)
    run(tiny, tmp_path / "run")
    assert list(seen.episodes) == [1, 2, 3, 4]
    assert len(seen.inputs) == 4 * 2 * 3  # updates, epochs, micro-batches of 8 of 24 answers
    played = [episode.example for episodes in seen.episodes.values() for episode in episodes]
    groups = [played[i : i + 6] for i in range(0, len(played), 6)]
    assert all(example == group[0] for group in groups for example in group)
    assert len({group[0].key for group in groups}) == len(groups)
    updates = [row for row in rows(tmp_path / "run") if "reward" in row]
    assert [row["step"] for row in updates] == [1, 2, 3, 4]
    assert [row["step"] for row in rows(tmp_path / "run") if "id_success" in row] == [0, 2, 4]
    for row, episodes in zip(updates, seen.episodes.values(), strict=True):
        rewards = [episode.rewards[0] for episode in episodes]
        assert row["reward"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
        assert row["success"] == pytest.approx(row["reward"])
        assert row["kl"] > 0
        assert row["clip_fraction"] >= 0
        assert row["response_tokens"] == 1
        lengths = [len(episode.steps[0].prompt) for episode in episodes]
        assert row["prompt_tokens"] == pytest.approx(sum(lengths) / len(lengths))
        assert {"policy_loss", "grad_norm", "learning_rate", "entropy", "seconds"} <= row.keys()


def test_problems_are_held_apart(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No problem that is played is one that success is measured on."""
    seen = Recorded(monkeypatch)
    run(tiny, tmp_path / "run", updates=12, data={"task": "letter", "n": 48}, success={"every": 12, "n": 30})
    config = load_config("grpo", settings(success={"n": 30}), model=tiny, out=tmp_path / "run")
    assert isinstance(config, GrpoConfig)
    played = {episode.example.key for episodes in seen.episodes.values() for episode in episodes}
    measured = {example.key for examples in data.success_problems(config).values() for example in examples}
    assert len(played) == 48
    assert len(measured) == 60
    assert not played & measured


def test_trl_gets_the_tokens_that_were_drawn(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are the renderer's, answers the engine's, and each has its group's advantage."""
    seen = Recorded(monkeypatch)
    monkeypatch.setattr(Letter, "grade", lambda _self, _data, answer: Grade("odd", sum(map(ord, answer)) % 7, "No."))
    run(tiny, tmp_path / "run", updates=1, epochs=1, rollout={"max_tokens": 30})
    renderer = Renderer(Model("tiny", "", tiny))
    asking = Asking(Letter(), {}, chat=True)
    episodes = seen.episodes[1]
    expected = []
    for i in range(0, len(episodes), 6):
        group = episodes[i : i + 6]
        rewards = torch.tensor([episode.rewards[0] for episode in group], dtype=torch.float64)
        for episode, reward in zip(group, rewards, strict=True):
            (step,) = episode.steps
            assert list(step.prompt) == renderer.tokens(asking.prompt(episode.example))
            expected.append((step.prompt, step.response, float((reward - rewards.mean()) / (rewards.std() + 1e-4))))
    found = [
        (tuple(prompt), tuple(answer), advantage)
        for inputs, _ in seen.inputs
        for prompt, answer, advantage in zip(*_unpadded(inputs), inputs["advantages"].tolist(), strict=True)
    ]
    assert [row[:2] for row in sorted(found)] == [row[:2] for row in sorted(expected)]
    assert [row[2] for row in sorted(found)] == pytest.approx([row[2] for row in sorted(expected)], abs=1e-5)
    assert len({len(answer) for _, answer, _ in found}) > 1


@pytest.mark.parametrize("learned_positions", [False, True])
def test_log_probabilities(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned_positions: bool
) -> None:
    """They are those of the tempered distribution, whatever the padding."""
    model = _gpt2(tmp_path / "gpt2") if learned_positions else tiny
    seen = Recorded(monkeypatch)
    monkeypatch.setattr(Letter, "grade", lambda *_: Grade(CORRECT, 1.0, "Right."))
    run(model, tmp_path / "run", updates=1, epochs=1, rollout={"temperature": 0.5, "max_tokens": 4})
    network = AutoModelForCausalLM.from_pretrained(model).double()
    assert len({len(episode.steps[0].prompt) for episode in seen.episodes[1]}) > 1
    for inputs, logprobs in seen.inputs:
        for row, (prompt, answer) in enumerate(zip(*_unpadded(inputs), strict=True)):
            with torch.no_grad():
                logits = network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            expected = (logits / 0.5).log_softmax(dim=-1)[range(len(answer)), answer]
            torch.testing.assert_close(logprobs[row, : len(answer)].double(), expected, rtol=0, atol=1e-4)


def _unpadded(inputs: Mapping[str, torch.Tensor]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers."""
    prompts, answers = (
        [ids[mask.bool()].tolist() for ids, mask in zip(inputs[f"{name}_ids"], inputs[f"{name}_mask"], strict=True)]
        for name in ("prompt", "completion")
    )
    return prompts, answers


def _gpt2(directory: Path) -> Path:
    config = GPT2Config(
        vocab_size=104, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3, bos_token_id=None,
        eos_token_id=1, pad_token_id=0, embd_pdrop=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


class Killed(Silence):
    """Kills the process while it learns from the third update's episodes."""

    def phase(self, name: str, total: int, done: int = 0) -> None:  # noqa: ARG002
        self._name = name

    def step(self, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        if re.match("update 3 of 4: learning", self._name):
            print("vllm" in sys.modules, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def killed(tiny: str, out: str) -> None:
    """A run that does not come to its end; called in a process of its own."""
    TASKS["letter"] = Letter  # type: ignore[index]  # a dict
    run(Path(tiny), Path(out), progress=Killed(), kl=0.1, save_every=2)


def test_resume(tiny: Path, tmp_path: Path) -> None:
    """After a kill, training goes on to the same weights and figures, bit for bit; vLLM is not imported."""
    code = "import sys; from tests.trainers.test_grpo import killed; killed(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny), str(tmp_path / "killed")],
        cwd=ROOT, capture_output=True, text=True, env=alike(),
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == "False\n"
    assert (tmp_path / "killed/resume/checkpoint-2/complete").exists()
    run(tiny, tmp_path / "killed", resume=True, kl=0.1, save_every=2)
    run(tiny, tmp_path / "whole", kl=0.1, save_every=2)
    for name in ("checkpoint-2", "checkpoint-4"):
        weights = [(tmp_path / out / name / "model.safetensors").read_bytes() for out in ("killed", "whole")]
        assert weights[0] == weights[1]
    assert weights[0] != (tiny / "model.safetensors").read_bytes()
    logs = [[{**row, "seconds": 0} for row in rows(tmp_path / out)] for out in ("killed", "whole")]
    assert logs[0] == logs[1]
    assert not (tmp_path / "killed/resume").exists()
    assert [row["reference_kl"] > 0 for row in logs[0] if "reference_kl" in row] == [True] * 4


def test_engine_with_the_weights_of_each_update(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of its own plays the same episodes: it gets the weights as they are."""
    from evalkit.engines.transformers import TransformersEngine

    monkeypatch.setattr("trainers.actors.make_engine", lambda *_: TransformersEngine())
    run(tiny, tmp_path / "live")
    run(tiny, tmp_path / "engine", rollout={"engine": "vllm"})
    live, engine = (load_file(tmp_path / out / "final/model.safetensors") for out in ("live", "engine"))
    assert all(torch.equal(live[name], engine[name]) for name in live)


def test_loss_that_is_not_finite(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training stops with the update and the last good checkpoint."""
    from trainers import grpo

    loss, calls = grpo._Trainer._compute_loss, iter(range(100))

    def spoiled(trainer: Any, model: Any, inputs: Any) -> torch.Tensor:
        return loss(trainer, model, inputs) * (math.nan if next(calls) == 9 else 1)

    monkeypatch.setattr(grpo._Trainer, "_compute_loss", spoiled)
    with pytest.raises(TrainingError) as error:
        run(tiny, tmp_path / "run", save_every=1)
    assert str(error.value) == (
        "update 2: the loss is not finite; lower `optimizer.learning_rate`, or look for NaN in the checkpoint; "
        f"the last good checkpoint is `{tmp_path / 'run/checkpoint-1'}`"
    )


def test_answers_that_cannot_be_shared_out(tiny: Path, tmp_path: Path) -> None:
    """All answers of an update make whole micro-batches."""
    with pytest.raises(ConfigError) as error:
        run(tiny, tmp_path / "run", prompts=3, generations=5)
    assert "prompts: found 3 with `generations` 5, 15 answers in all, with `micro_batch_size` 8" in str(error.value)
    assert "multiple of 8" in str(error.value)


def test_tokenizer_without_padding(tmp_path: Path) -> None:
    """TRL pads with the tokenizer's tokens."""
    model = save_tiny(tmp_path / "model")
    bare = tokenizer()
    bare.pad_token = bare.eos_token = None
    bare.save_pretrained(model)
    with pytest.raises(TrainingError, match="neither a token for padding nor one that ends texts"):
        run(model, tmp_path / "run")
