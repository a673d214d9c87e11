"""An engine over a network in this process, against one that has loaded its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

import evalkit.engines.decoding as decoding
from evalkit.engines.base import Completion, Engine, Model, Request, Sampling
from evalkit.engines.transformers import TransformersEngine
from evalkit.errors import EngineError
from evalkit.rendering import Renderer
from tests.tiny_models import save_tiny, tokenizer
from trainers.live_engine import LiveEngine

PROMPTS = [({"role": "user", "content": text},) for text in ("hi", "what is 2+2?", "a" * 40, "")]
DRAWN = Sampling(temperature=1.0, max_tokens=24)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def network(tiny: Path) -> Any:
    """It, in training mode."""
    return AutoModelForCausalLM.from_pretrained(tiny).train()


@pytest.fixture
def engine(tiny: Path, network: Any) -> LiveEngine:
    """Over the network."""
    return LiveEngine(network, Renderer(Model("tiny", "0", tiny)))


def answers(engine: Engine, sampling: Sampling = DRAWN) -> list[Completion]:
    found = dict(engine.generate([Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)], sampling))
    return [found[i] for i in range(len(PROMPTS))]


def loaded(path: Path) -> TransformersEngine:
    made = TransformersEngine({"device": "cpu"})
    made.load(Model("tiny", "0", path), 0)
    return made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_the_saved_checkpoint(
    tmp_path: Path, tiny: Path, network: Any, engine: LiveEngine, temperature: float
) -> None:
    """Before a change of the weights and after it; scores as well. Nothing is loaded in between."""
    sampling = Sampling(temperature, 24)
    with loaded(tiny) as other:
        before = answers(other, sampling)
    assert answers(engine, sampling) == before
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.sin(torch.arange(parameter.numel())).view_as(parameter)
    network.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    engine.load(Model("another", "1", None), 64)
    pairs = [(PROMPTS[0], "56")]
    with loaded(tmp_path) as other:
        assert answers(engine, sampling) == answers(other, sampling) != before
        assert list(engine.score(pairs, end=True)) == list(other.score(pairs, end=True))


def test_evaluation_mode_only_at_work(network: Any, engine: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In between, and after an error, every module is in the mode it was in, which need not be the same for all."""
    network.model.layers[0].eval()
    before = [module.training for module in network.modules()]
    assert len(set(before)) == 2
    seen: list[bool] = []
    real = decoding.decode

    def spy(network: Any, *rest: Any) -> Any:
        seen.extend(module.training for module in network.modules())
        return real(network, *rest)

    monkeypatch.setattr(decoding, "decode", spy)
    engine._rows = 1
    for _ in engine.generate([Request(prompt) for prompt in PROMPTS], DRAWN):
        assert [module.training for module in network.modules()] == before
    assert seen
    assert not any(seen)
    with torch.no_grad():
        network.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(EngineError, match=r"`tiny` gives NaN or infinity .*: lower `optimizer\.learning_rate`"):
        answers(engine)
    assert [module.training for module in network.modules()] == before


def test_closing_leaves_the_network(network: Any, engine: LiveEngine) -> None:
    """It is not the engine's: the next one goes on with it."""
    before = answers(engine)
    with engine:
        pass
    assert answers(engine) == before
    assert next(network.parameters()).requires_grad


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_goes_on_under_the_same_autocast(network: Any, engine: LiveEngine, checkpointing: bool) -> None:
    """What was computed without gradient while answering in bfloat16 is not taken for training."""
    if checkpointing:
        network.gradient_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16):
        found = answers(engine)
        assert all(answer.ids for answer in found)
        ids = torch.tensor([found[0].prompt_ids + found[0].ids])
        network(ids, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_weights_may_change_under_the_same_autocast(network: Any, engine: LiveEngine) -> None:
    """Answers are the new weights', though autocast keeps the converted old ones while a batch is answered."""
    with torch.autocast("cpu", torch.bfloat16):
        before = answers(engine)
        with torch.no_grad():
            network.lm_head.weight.neg_()
        after = answers(engine)
    with torch.autocast("cpu", torch.bfloat16):
        assert answers(engine) == after != before


def test_weights_are_converted_once_a_batch(network: Any, engine: LiveEngine) -> None:
    """Not once a token, which would take most of the time."""
    parameters = {parameter.data_ptr() for parameter in network.parameters()}
    converted: list[int] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in parameters:
                converted.append(args[0].data_ptr())
            return function(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Spy():
        found = answers(engine, Sampling(max_tokens=5))
    assert max(answer.tokens for answer in found) == 5
    assert len(converted) == len(set(converted)) > 10


def test_bfloat16_arithmetic(network: Any, engine: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast the network gives bfloat16, and the choice is made in float32."""
    seen: list[torch.dtype] = []

    def greedy(logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
        seen.append(logits.dtype)
        return decoding.draws(1.0, range(len(rows)))(logits, range(len(rows)))

    monkeypatch.setattr(decoding, "greedy", greedy)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.tensor([[5]])).logits.dtype == torch.bfloat16
        answers(engine, Sampling(max_tokens=2))
    assert set(seen) == {torch.float32}
