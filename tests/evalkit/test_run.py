"""Episodes: batches, retries, seeds, and how they end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from evalkit.engines.base import Model, Prompt, Request, Sampling
from evalkit.errors import TaskError
from evalkit.progress import Silence
from evalkit.run import Asking, losses, plain, play
from evalkit.samples import Sample
from evalkit.task import Example
from tests.evalkit.fake_engine import FakeEngine, text
from tests.evalkit.sums import Sums

TASK = Sums()
MODEL = Model("model", "0" * 16, None)


class Kept(dict[str, Any]):
    """Turns in memory."""

    def put(self, name: str, row: Mapping[str, Any], /) -> None:
        self[name] = dict(row)


def examples(n: int = 6) -> list[Example]:
    return TASK.examples("id", n)


def right(prompt: Prompt) -> str:
    a, b = map(int, re.findall(r"[0-9]+", text(prompt))[:2])
    return str(a + b)


def run(
    engine: FakeEngine, attempts: int = 3, chat: bool = True, n: int = 6, seed: int = 0, kept: Kept | None = None
) -> list[Sample]:
    engine.load(MODEL, 0)
    asking = Asking(TASK, {}, chat)
    found = play(
        asking,
        examples(n),
        engine,
        "model",
        Sampling(max_tokens=10),
        attempts,
        seed,
        Kept() if kept is None else kept,
        Silence(),
    )
    return sorted(found, key=lambda sample: sample.index)


def requests(engine: FakeEngine) -> list[Request]:
    return [request for batch in engine.batches for request in batch]


def test_right_at_once() -> None:
    """An episode ends with a right answer: one batch, one turn each."""
    engine = FakeEngine(lambda _, prompt: right(prompt))
    samples = run(engine)
    assert [len(batch) for batch in engine.batches] == [6]
    assert all(s.correct and s.reward == 1 and len(s.completions) == len(s.grades) == 1 for s in samples)
    assert [s.index for s in samples] == list(range(6))
    assert [s.key for s in samples] == [e.key for e in examples()]


def test_each_turn_sends_every_live_episode_at_once() -> None:
    """Three episodes are solved at once, two at the second try, one never: batches of 6, 3, 1."""
    indices = {TASK.question(e.data): e.index for e in examples()}

    def answer(_: str, prompt: Prompt) -> str:
        turn, index = len(prompt) // 2, indices[text(prompt).splitlines()[0]]
        return right(prompt) if turn >= {3: 1, 4: 1, 5: 9}.get(index, 0) else "7"

    engine = FakeEngine(answer)
    samples = run(engine)
    assert [len(batch) for batch in engine.batches] == [6, 3, 1]
    assert [len(s.completions) for s in samples] == [1, 1, 1, 2, 2, 3]
    assert [s.correct for s in samples] == [True] * 5 + [False]
    assert samples[5].reward == 0
    assert [s.tokens for s in samples] == [sum(map(len, s.completions)) for s in samples]


def test_retries_carry_the_verifiers_message() -> None:
    """The second prompt is the first, the answer as it was, and the reason of its grade as the user's turn."""
    engine = FakeEngine(lambda *_: "none")
    run(engine, attempts=2, n=1)
    first, second = (request.prompt for request in requests(engine))
    assert first == ({"role": "user", "content": TASK.question(examples(1)[0].data)},)
    assert second == (
        *first,
        {"role": "assistant", "content": "none"},
        {"role": "user", "content": "That is not a number. Try again, in the same form."},
    )


def test_plain_text() -> None:
    """Without chat the first prompt is the question and nothing else; an answer follows it as it was generated."""
    engine = FakeEngine(lambda *_: " none")
    run(engine, attempts=2, n=1, chat=False)
    question = TASK.question(examples(1)[0].data)
    assert [request.prompt for request in requests(engine)] == [
        question,
        f"{question} none\n\nThat is not a number. Try again, in the same form.\n",
    ]
    assert plain(({"role": "user", "content": "a"},)) == "a"


def test_seeds_depend_on_the_example_alone() -> None:
    """The seed of an answer is the same in whatever batch it is asked, and differs between examples, turns, seeds."""
    together, alone, other = (FakeEngine(lambda *_: "none") for _ in range(3))
    run(together, attempts=2)
    run(alone, attempts=2, n=1)
    run(other, attempts=2, seed=1)
    assert together.batches[0][0].seed == alone.batches[0][0].seed
    assert together.batches[1][0].seed == alone.batches[1][0].seed
    assert len({r.seed for r in requests(together)} | {r.seed for r in requests(other)}) == 24


def test_out_of_context_later() -> None:
    """A conversation that outgrows the context ends the episode with the turns that it had."""
    question = len(TASK.question(examples(1)[0].data))
    samples = run(FakeEngine(lambda *_: "none", room=question + 20), n=1)
    assert len(samples[0].completions) == 1
    assert samples[0].reward == -1


def test_out_of_context_at_first() -> None:
    """A first prompt without room is an error that says how long it is."""
    with pytest.raises(TaskError, match=r"example \d of `id` has \d+ tokens, and with 10 for the answer"):
        run(FakeEngine(lambda *_: "none", room=20))


@pytest.mark.parametrize("die_after", range(1, 18))
def test_no_turn_is_lost(die_after: int) -> None:
    """A run that breaks after any answer goes on with the next: each is asked once, and all is as in one run."""
    whole = run(FakeEngine(lambda *_: "none"))
    kept, samples = Kept(), []
    engine = FakeEngine(lambda *_: "none", die_after=die_after)
    with pytest.raises(RuntimeError):
        samples += run(engine, kept=kept)
    again = FakeEngine(lambda *_: "none")
    assert len(run(again, kept=kept)) == 6
    finished = max(0, die_after - 12)  # episodes of which `run` has lost the samples, and asks the last turn again
    assert len(requests(again)) == 18 - die_after + finished
    assert run(FakeEngine(lambda *_: "none"), kept=kept) == whole


def test_turns_of_another_problem_are_not_taken() -> None:
    """A row of another key, or of another form, is as if not written."""
    kept = Kept()
    run(FakeEngine(lambda *_: "none"), kept=kept)
    kept["id/0/0"]["key"] = "another"
    del kept["id/1/1"]["grade"]
    engine = FakeEngine(lambda *_: "none")
    run(engine, kept=kept)
    assert [len(batch) for batch in engine.batches] == [1, 2, 6]


def test_losses() -> None:
    """The loss of a reference answer is the sum over its tokens and the one that ends it."""
    engine = FakeEngine(lambda *_: "")
    found = list(losses(Asking(TASK, {}, True), examples(), engine, "model"))
    assert [loss.answer for loss in found] == [TASK.reference(e.data) for e in examples()]
    assert all(loss.tokens == len(loss.answer) + 1 and loss.nll == 0.5 * loss.tokens for loss in found)


def test_questions_can_be_replaced() -> None:
    """A question of the user's own stands in for the task's."""
    engine = FakeEngine(lambda *_: "none")
    engine.load(MODEL, 0)
    asking = Asking(TASK, {("id", 0): "Well?"}, True)
    sample = next(play(asking, examples(1), engine, "model", Sampling(), 1, 0, Kept(), Silence()))
    assert sample.prompt == "Well?"
    assert engine.batches[0][0].prompt == ({"role": "user", "content": "Well?"},)
