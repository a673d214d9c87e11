"""Plays the episodes of a task: every live one in one batch, turn after turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from evalkit.engines.base import Completion, Engine, Prompt, Request, Sampling
from evalkit.errors import TaskError
from evalkit.progress import Progress
from evalkit.samples import Loss, Sample
from evalkit.task import Conversation, Example, Grade, Task, Turn


@dataclass(frozen=True)
class Asking:
    """How a task's questions are put: texts that replace them, and whether through the chat template."""

    task: Task
    questions: Mapping[tuple[str, int], str]  # of (split, index); where there is none, the task's own is asked
    chat: bool

    def prompt(self, example: Example, history: Sequence[Turn] = ()) -> Prompt:
        """What the engine gets."""
        conversation = self.conversation(example, history)
        return conversation if self.chat else plain(conversation)

    def conversation(self, example: Example, history: Sequence[Turn] = ()) -> Conversation:
        """The messages so far."""
        return self.task.prompt(example.data, history, self.questions.get((example.split, example.index)))


def plain(conversation: Conversation) -> str:
    """A conversation as plain text: the first message as it is, each answer right after it, later ones set apart."""
    first, *rest = conversation
    later = (m["content"] if m["role"] == "assistant" else f"\n\n{m['content']}\n" for m in rest)
    return "".join([first["content"], *later])


class Turns(Protocol):
    """Keeps the turns of episodes that go on, so that a killed run loses none; `evalkit.journal.Journal` is one."""

    def get(self, name: str, /) -> Mapping[str, Any] | None:
        """What was put under a name, or None."""

    def put(self, name: str, row: Mapping[str, Any], /) -> None:
        """Keep a row of plain data."""


@dataclass
class Live:
    """An example that is being played, and its turns so far."""

    example: Example
    turns: list[Turn] = field(default_factory=list)

    @property
    def solved(self) -> bool:
        """Whether the last answer was right."""
        return bool(self.turns) and self.turns[-1].grade.correct

    def name(self, attempt: int) -> str:
        """What tells an attempt from all others; the seed of its answer follows from it."""
        return f"{self.example.split}/{self.example.index}/{attempt}"


L = TypeVar("L", bound=Live)


def take_turns(
    asking: Asking,
    episodes: Sequence[L],
    engine: Engine,
    sampling: Sampling,
    attempts: int,
    seed: int,
    begins: Callable[[int, int], None],
) -> Iterator[tuple[L, Completion]]:
    """Ask for answers until each episode is solved, has `attempts` turns, or is out of context.

    A wrong answer goes back with the reason of its grade. Every answer is a turn of its episode by the time that the
    two are yielded; one that finished as `context` is no answer, and the episode's end. `begins(turn, live)` hears of
    each turn and how many episodes take it, all in one batch. The seed of an answer depends on `seed` and the
    attempt's name alone. Raises EngineError.
    """
    for attempt in range(attempts):
        live = [e for e in episodes if len(e.turns) == attempt and not e.solved]
        if not live:
            continue
        begins(attempt + 1, len(live))
        requests = [Request(asking.prompt(e.example, e.turns), seed_of(seed, e.name(attempt))) for e in live]
        for number, completion in engine.generate(requests, sampling):
            episode = live[number]
            if completion.finish != "context":
                grade = asking.task.grade(episode.example.data, completion.text)
                episode.turns.append(Turn(completion.text, grade))
            yield episode, completion


@dataclass
class _Episode(Live):
    tokens: int = 0
    cut: int = 0

    def count(self, tokens: int, cut: bool) -> None:
        self.tokens += tokens
        self.cut += cut

    def keep(self, turns: Turns, tokens: int, cut: bool) -> None:
        """Write down the last turn."""
        last = self.turns[-1]
        row = {"answer": last.answer, "grade": asdict(last.grade), "tokens": tokens, "cut": cut}
        turns.put(self.name(len(self.turns) - 1), {"key": self.example.key, **row})

    def restore(self, turns: Turns, attempts: int) -> None:
        """Take the turns that an earlier run has written down; the last possible one is never among them."""
        for attempt in range(attempts - 1):
            row = turns.get(self.name(attempt))
            if row is None or row.get("key") != self.example.key:
                return
            try:
                turn = Turn(row["answer"], Grade(**row["grade"]))
                self.count(row["tokens"], row["cut"])
            except (KeyError, TypeError):
                return
            self.turns.append(turn)


def play(
    asking: Asking,
    examples: Sequence[Example],
    engine: Engine,
    model: str,
    sampling: Sampling,
    attempts: int,
    seed: int,
    turns: Turns,
    progress: Progress,
) -> Iterator[Sample]:
    """Let the loaded model answer every example, with up to `attempts` tries each, and yield each finished episode.

    The rules are those of `take_turns`. Episodes go on where `turns` has them. The seed of an answer depends on `seed`,
    example and turn alone. Raises TaskError where a first prompt does not fit into the context, and EngineError.
    """
    episodes = [_Episode(example) for example in examples]
    for episode in episodes:
        episode.restore(turns, attempts)
    for episode, completion in take_turns(asking, episodes, engine, sampling, attempts, seed, progress.turn):
        progress.answered(completion.tokens)
        if not episode.turns:
            raise no_room(model, episode.example, completion.prompt_tokens, sampling.max_tokens)
        cut = completion.finish == "length"
        episode.count(completion.tokens, cut)
        if completion.finish == "context" or episode.solved or len(episode.turns) == attempts:
            yield _sample(asking, episode, model)
        else:
            episode.keep(turns, completion.tokens, cut)


def no_room(model: str, example: Example, prompt_tokens: int, answer_tokens: int) -> TaskError:
    """The error for a prompt that leaves no room in a model's context."""
    return TaskError(
        f"`{model}`: the prompt of example {example.index} of `{example.split}` has {prompt_tokens:,} tokens, and with "
        f"{answer_tokens:,} for the answer that is more than its context; lower `--max-tokens`, or shorten the prompt "
        "(`--prompt FILE`)"
    )


def _sample(asking: Asking, episode: _Episode, model: str) -> Sample:
    example, last = episode.example, episode.turns[-1].grade
    return Sample(
        task=asking.task.name,
        split=example.split,
        index=example.index,
        key=example.key,
        model=model,
        prompt=plain(asking.conversation(example)),
        completions=tuple(turn.answer for turn in episode.turns),
        grades=tuple(turn.grade for turn in episode.turns),
        reward=last.reward,
        correct=last.correct,
        tokens=episode.tokens,
        cut=episode.cut,
    )


def losses(asking: Asking, examples: Sequence[Example], engine: Engine, model: str) -> Iterator[Loss]:
    """The negative log-likelihood of each example's reference answer, its end included. Raises EngineError."""
    answers = [asking.task.reference(example.data) for example in examples]
    pairs = [(asking.prompt(example), answer) for example, answer in zip(examples, answers, strict=True)]
    for number, scores in engine.score(pairs, end=True):
        example = examples[number]
        yield Loss(
            task=asking.task.name,
            split=example.split,
            index=example.index,
            key=example.key,
            model=model,
            answer=answers[number],
            nll=-sum(score.logprob for score in scores),
            tokens=len(scores),
        )


def seed_of(*parts: object) -> int:
    """The seed of a request that these parts tell from all others: 31 bits, which every engine takes."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) >> 1
