"""The learning half of PPO: against a plain implementation, and against itself cut up otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM

from evalkit.task import Example, Grade
from tests.tiny_models import save_tiny
from trainers.config import PpoConfig
from trainers.policy import ValueHead
from trainers.ppo_learner import Learner, NotFiniteError, Turns
from trainers.progress import Silence
from trainers.rollout import Episode, Step

ROOT = Path(__file__).parent.parent.parent
REWARDS = ((-1.0, 5.0), (-3.0,), (-2.0, -1.0, -1.0))  # of the turns of three episodes
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", name="episodes")
def _episodes() -> list[Episode]:
    return made_up_episodes()


def made_up_episodes() -> list[Episode]:
    """Random tokens, prompts and responses of all lengths."""
    generator = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(4, 100, (length,), generator=generator).tolist())

    def step(reward: float) -> Step:
        return Step(ids(3, 12), ids(1, 9), "", Grade("any", reward, ""))

    return [Episode(Example("id", i, str(i), {}), tuple(map(step, rewards))) for i, rewards in enumerate(REWARDS)]


def config(**changes: Any) -> PpoConfig:
    given = {
        "model": "m",
        "out": "o",
        "data": {"task": "general_points"},
        "device": "cpu",
        "updates": 2,
        "epochs": 2,
        "kl": 0.0,
        "rollout": {"temperature": TEMPERATURE},
        # eps large, so that rounding of small gradients does not show
        "optimizer": {"learning_rate": 1e-2, "eps": 1e-2, "schedule": "constant", "max_grad_norm": 0.5},
    }
    return PpoConfig.model_validate({**given, **changes})


def network(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def learner(model: Path, reference: bool = False, **changes: Any) -> Learner:
    made = Learner(config(**changes), network(model), network(model) if reference else None, Accelerator(cpu=True))
    with torch.no_grad():  # a value head that says something, and passes gradients on
        torch.manual_seed(1)
        for parameter in made._accelerator.unwrap_model(made.policy).value_head.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return made


def weights(made: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.policy.state_dict().items()}


def plain_terms(network: Any, head: ValueHead, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of a whole response and the value of its prompt, by one unpadded pass over both."""
    out = network(input_ids=torch.tensor([step.prompt + step.response]), output_hidden_states=True)
    last = len(step.prompt) - 1
    logprobs = log_softmax(out.logits[0, last:-1] / TEMPERATURE, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(step.response)[:, None])
    return chosen.sum(), head(out.hidden_states[-1][0, last])


def plain_advantages(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """By the definition: sums of discounted residuals."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * w - v for r, v, w in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def test_an_update_is_that_of_a_plain_implementation(model: Path, episodes: list[Episode]) -> None:
    """Two epochs over three episodes give the weights that one pass a turn and autograd give, to float32's rounding."""
    made = learner(model, micro_batch_size=2)
    net, head = network(model), ValueHead(64)
    head.load_state_dict(made.policy.value_head.state_dict())
    steps = [step for episode in episodes for step in episode.steps]

    with torch.no_grad():
        before = [plain_terms(net, head, step) for step in steps]
    old = [float(logprob) for logprob, _ in before]
    values = [float(value) for _, value in before]
    raw, returns, at = [], [], 0
    for episode in episodes:
        own = values[at : at + len(episode.steps)]
        raw += plain_advantages(episode.rewards, own, 0.9, 0.95)
        at += len(episode.steps)
    returns = [a + v for a, v in zip(raw, values, strict=True)]
    mean = sum(raw) / len(raw)
    deviation = (sum((a - mean) ** 2 for a in raw) / len(raw)) ** 0.5
    scaled = [(a - mean) / (deviation + 1e-5) for a in raw]

    turns = made.judge(episodes)
    assert [float(each.sum()) for each in turns.logprobs] == pytest.approx(old, rel=1e-5)
    assert turns.values.tolist() == pytest.approx(values, abs=1e-5)
    assert turns.advantages.tolist() == pytest.approx(scaled, abs=1e-4)
    assert turns.returns.tolist() == pytest.approx(returns, abs=1e-5)

    made.learn(turns, 1, Silence())
    parameters = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.999), eps=1e-2, weight_decay=0.0)
    for _ in range(2):
        loss = torch.zeros(())
        for step, before_, advantage, value_before, target in zip(steps, old, scaled, values, returns, strict=True):
            logprob, value = plain_terms(net, head, step)
            ratio = (logprob - before_).exp()
            loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
            near = value_before + (value - value_before).clamp(-0.1, 0.1)
            loss = loss + 0.5 * 0.5 * torch.maximum((value - target) ** 2, (near - target) ** 2)
        optimizer.zero_grad()
        (loss / len(steps)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    found = weights(made)
    start = network(model).state_dict()
    for name, expected in net.state_dict().items():
        moved = (expected - start[name]).abs().max()
        assert moved > 1e-5
        assert (found[f"network.{name}"] - expected).abs().max() < 1e-3 * moved + 1e-7, name


@pytest.mark.parametrize("ratio", ["response", "token"])
@pytest.mark.parametrize("micro", [1, 4, 100])
def test_micro_batches_change_nothing(model: Path, episodes: list[Episode], ratio: str, micro: int) -> None:
    """However a minibatch is cut up, its gradient and losses are the same."""
    figures, norms = [], []
    for size in (2, micro):
        made = learner(model, micro_batch_size=size, ratio=ratio, entropy=0.1, epochs=1)
        learned = made.learn(made.judge(episodes), 1, Silence())
        figures.append([learned[name] for name in ("policy_loss", "value_loss", "ratio_mean", "kl")])
        norms.append(learned["grad_norm"])
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_mini_batches_hold_every_turn_once_an_epoch(
    model: Path, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch goes through all turns in as many steps as there are minibatches, in an order of its own."""
    made = learner(model, mini_batches=3, epochs=2)
    seen: list[list[int]] = []
    step = made._step

    def watched(turns: Turns, chosen: Sequence[int]) -> Any:
        seen.append(list(chosen))
        return step(turns, chosen)

    monkeypatch.setattr(made, "_step", watched)
    made.learn(made.judge(episodes), 1, Silence())
    assert [len(chosen) for chosen in seen] == [2] * 6
    first, second = ([*chain(*seen[i : i + 3])] for i in (0, 3))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


def test_ratios_begin_at_one(model: Path, episodes: list[Episode]) -> None:
    """The first step of an update compares the policy with itself."""
    made = learner(model, epochs=1)
    learned = made.learn(made.judge(episodes), 1, Silence())
    assert learned["ratio_min"] == pytest.approx(1, abs=1e-4)
    assert learned["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert learned["clip_fraction"] == 0


def test_a_reference_lowers_rewards_by_its_kl(model: Path, episodes: list[Episode]) -> None:
    """Against itself a policy has no KL and the same returns; once it has moved, returns fall by the penalty."""
    made = learner(model, reference=True, kl=0.5, gamma=0.0)
    turns = made.judge(episodes)
    assert turns.kl.tolist() == pytest.approx([0.0] * 6, abs=1e-4)
    made.learn(turns, 1, Silence())
    moved = made.judge(episodes)
    assert moved.kl.abs().min() > 1e-3
    rewards = torch.tensor([reward for episode in episodes for reward in episode.rewards])
    assert torch.allclose(moved.returns, rewards - 0.5 * moved.kl, atol=1e-5)  # gamma 0: the return is the reward


def test_two_processes_learn_what_one_does(model: Path, episodes: list[Episode], tmp_path: Path) -> None:
    """Turns shared out between two processes give the weights and figures of one, to float32's rounding."""
    made = learner(model, micro_batch_size=2, mini_batches=2)
    figures = made.learn(made.judge(episodes), 1, Silence())
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.trainers.learning_process"]
    command = [sys.executable, "-m", *launch, str(model), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "weights.safetensors")
    start = network(model).state_dict()
    for name, expected in weights(made).items():
        moved = (expected - start[name.removeprefix("network.")]).abs().max() if name.startswith("network.") else 1.0
        assert (found[name] - expected).abs().max() < 1e-3 * moved + 1e-7, name
    shared = json.loads((tmp_path / "figures.json").read_text())
    assert shared == {name: pytest.approx(figure, rel=1e-3, abs=1e-5) for name, figure in figures.items()}


def test_dropout_is_off(model: Path, episodes: list[Episode]) -> None:
    """A network with dropout is judged and learned from without it."""
    net = network(model)
    net.config.attention_dropout = 0.5
    for layer in net.model.layers:
        layer.self_attn.attention_dropout = 0.5
    made = Learner(config(epochs=1), net, None, Accelerator(cpu=True))
    learned = made.learn(made.judge(episodes), 1, Silence())
    assert learned["ratio_max"] == pytest.approx(1, abs=1e-4)


def test_gradient_checkpointing_changes_nothing(model: Path, episodes: list[Episode]) -> None:
    """Activations computed twice are the same activations."""
    found = []
    for checkpointing in (False, True):
        made = learner(model, gradient_checkpointing=checkpointing)
        made.learn(made.judge(episodes), 1, Silence())
        found.append(weights(made))
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=1e-6), name


def test_a_gradient_that_is_not_finite_does_no_harm(model: Path, episodes: list[Episode]) -> None:
    """The update ends before its step, and the weights are as they were."""
    made = learner(model)
    turns = made.judge(episodes)
    turns.advantages[0] = float("nan")
    before = weights(made)
    with pytest.raises(NotFiniteError, match="the gradient is not finite"):
        made.learn(turns, 7, Silence())
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(made).items())


def test_the_value_head_begins_alike(model: Path) -> None:
    """Its random numbers come from the seed alone, whatever was drawn before."""
    heads = []
    for seed in (3, 3, 4):
        torch.rand(len(heads) + 1)
        made = Learner(config(seed=seed), network(model), None, Accelerator(cpu=True))
        heads.append(made.policy.value_head.first.weight.clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
