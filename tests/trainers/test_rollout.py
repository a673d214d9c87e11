"""Episodes: turns, rewards, endings, seeds, and the very tokens that were drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from evalkit.engines.base import Model, Prompt, Sampling
from evalkit.rendering import Renderer
from evalkit.run import Asking
from evalkit.task import Example, Turn
from tests.evalkit.fake_engine import FakeEngine, text
from tests.evalkit.sums import Sums
from tests.tiny_models import save_tiny
from trainers.errors import TrainingError
from trainers.live_engine import LiveEngine
from trainers.progress import Silence
from trainers.rollout import Episode, rollout

TASK = Sums()
ASKING = Asking(TASK, {}, chat=True)
SAMPLING = Sampling(temperature=1.0, max_tokens=10)
EXAMPLES = TASK.examples("id", 6, part="rl")


class Heard(Silence):
    """The steps of the progress, written down."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, float]] = []

    def step(self, metrics: Mapping[str, float]) -> None:
        self.steps.append(metrics)


def right(prompt: Prompt) -> str:
    a, b = map(int, re.findall(r"[0-9]+", text(prompt))[:2])
    return str(a + b)


def scripted(_: str, prompt: Prompt) -> str:
    """Examples 0 to 2 are solved at once, 3 at the second try, 4 at the third, 5 never."""
    questions = [TASK.question(example.data) for example in EXAMPLES]
    needed = [1, 1, 1, 2, 3, 9][questions.index(text(prompt).splitlines()[0])]
    turn = len(prompt) // 2 + 1
    return right(prompt) if turn >= needed else ["none", "9999"][turn % 2]


def play(
    engine: FakeEngine, examples: list[Example] = EXAMPLES, attempts: int = 3, seed: int = 0, heard: Heard | None = None
) -> list[Episode]:
    engine.load(Model("model", "0", None), 0)
    return rollout(ASKING, examples, engine, SAMPLING, attempts, seed, heard)


def test_turns_and_rewards() -> None:
    """A wrong number costs 0 and anything else 1, a right one ends the episode; each turn is one batch."""
    engine, heard = FakeEngine(scripted), Heard()
    episodes = play(engine, heard=heard)
    assert [len(batch) for batch in engine.batches] == [6, 3, 2]
    assert [episode.example for episode in episodes] == EXAMPLES
    assert [episode.rewards for episode in episodes] == [(1,), (1,), (1,), (0, 1), (0, -1, 1), (0, -1, 0)]
    assert [episode.solved for episode in episodes] == [True] * 5 + [False]
    assert len(heard.steps) == 6
    assert heard.steps[-1] == {"success": 5 / 6}


def test_the_verifiers_message_is_in_the_next_prompt() -> None:
    """Each turn's prompt begins with the last one's, goes on with its answer, and then says what was wrong."""
    first, second, third = play(FakeEngine(scripted))[5].steps
    assert (first.text, second.text, third.text) == ("9999", "none", "9999")
    asked = ["".join(map(chr, step.prompt)) for step in (first, second, third)]
    assert asked[0] == TASK.question(EXAMPLES[5].data)
    assert asked[1] == f"{asked[0]}\n9999\n9999 is not the sum. Try again, in the same form."
    assert asked[2] == f"{asked[1]}\nnone\nThat is not a number. Try again, in the same form."
    assert ["".join(map(chr, step.response)) for step in (first, second, third)] == ["9999", "none", "9999"]
    assert [step.grade.kind for step in (first, second, third)] == ["wrong value", "unparsable", "wrong value"]


def test_one_attempt() -> None:
    """As many turns as attempts."""
    assert [len(episode.steps) for episode in play(FakeEngine(scripted), attempts=1)] == [1] * 6


def test_out_of_context_later() -> None:
    """A conversation that outgrows the context ends with the turns that it had."""
    engine, heard = FakeEngine(scripted, room=len(TASK.question(EXAMPLES[5].data)) + 20), Heard()
    episodes = play(engine, heard=heard)
    assert [episode.rewards for episode in episodes] == [(1,), (1,), (1,), (0,), (0,), (0,)]
    assert not episodes[5].solved
    assert len(heard.steps) == 6


def test_out_of_context_at_first() -> None:
    """A first prompt without room is an error that says how long it is, and what to do."""
    with pytest.raises(
        TrainingError, match=r"example \d of `id` has \d+ tokens, and with 10 for .* lower `rollout.max_tokens`"
    ):
        play(FakeEngine(scripted, room=20))


def test_an_engine_without_tokens() -> None:
    """An answer of no tokens at all can be drawn by no engine; one that does not tell them cannot be learned from."""
    with pytest.raises(TrainingError, match="the engine `fake` does not give the tokens of its answers"):
        play(FakeEngine(lambda *_: ""))


def test_seeds() -> None:
    """An answer's seed is the same whoever plays beside it; others for examples, repetitions, turns and seeds."""

    def seeds(examples: list[Example], seed: int = 0) -> list[list[int]]:
        engine = FakeEngine(lambda *_: "none")
        play(engine, examples, attempts=2, seed=seed)
        return [[request.seed for request in batch] for batch in engine.batches]

    whole = seeds(EXAMPLES)
    assert len({each for batch in [*whole, *seeds(EXAMPLES, seed=1)] for each in batch}) == 24
    assert seeds([EXAMPLES[4]]) == [[batch[4]] for batch in whole]
    one, two = EXAMPLES[:2]
    repeated = seeds([one, two, one, one])
    assert len({each for batch in repeated for each in batch}) == 8
    assert [batch[:2] for batch in repeated] == [batch[:2] for batch in whole]
    assert seeds([two, one, one, one]) == [[b, a, c, d] for a, b, c, d in repeated]


def test_repetitions_are_episodes_of_their_own() -> None:
    """One that is solved does not end another of the same example; the order is that of the examples."""
    said = iter(["9999", "none", right(TASK.question(EXAMPLES[0].data)), "none", "9999"])
    episodes = play(FakeEngine(lambda *_: next(said)), [EXAMPLES[0]] * 3, attempts=2)  # which answers the last first
    assert [episode.rewards for episode in episodes] == [(1,), (-1, 0), (0, -1)]
    assert [episode.example for episode in episodes] == [EXAMPLES[0]] * 3


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_of_a_live_network(tmp_path: Path, chat: bool) -> None:
    """Prompts are the renderer's tokens, responses those that were drawn, whose text is what was graded."""
    renderer = Renderer(Model("tiny", "0", save_tiny(tmp_path)))
    engine = LiveEngine(AutoModelForCausalLM.from_pretrained(tmp_path).train(), renderer)
    asking = Asking(TASK, {}, chat)
    sampling = Sampling(temperature=1.0, max_tokens=40)
    episodes = rollout(asking, EXAMPLES, engine, sampling, 2, 0)
    assert episodes == rollout(asking, EXAMPLES, engine, sampling, 2, 0)
    ended = set()
    for episode in episodes:
        history: list[Turn] = []
        for step in episode.steps:
            assert list(step.prompt) == renderer.tokens(asking.prompt(episode.example, history))
            assert renderer.text(step.response) == step.text
            assert step.grade == TASK.grade(episode.example.data, step.text)
            assert renderer.end not in step.response[:-1]
            ended.add((step.response[-1] == renderer.end, len(step.response) == 40))
            history.append(Turn(step.text, step.grade))
    assert ended == {(True, False), (False, True)}
