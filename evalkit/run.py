"""Plays the episodes of a task: every live one in one batch, turn after turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from evalkit.engines.base import Completion, Engine, Prompt, Request, Sampling
from evalkit.errors import TaskError
from evalkit.progress import Progress
from evalkit.samples import Loss, Sample
from evalkit.task import Conversation, Example, Task, Turn


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


@dataclass
class _Episode:
    example: Example
    turns: list[Turn] = field(default_factory=list)
    tokens: int = 0
    cut: int = 0


def play(
    asking: Asking,
    examples: Sequence[Example],
    engine: Engine,
    model: str,
    sampling: Sampling,
    attempts: int,
    seed: int,
    progress: Progress,
) -> Iterator[Sample]:
    """Let the loaded model answer every example, with up to `attempts` tries each, and yield each finished episode.

    A wrong answer goes back with the reason of its grade; an episode ends when it is solved, out of attempts, or out of
    context. The seed of an answer depends on `seed`, example and turn alone. Raises TaskError where a
    first prompt does not fit into the context, and EngineError.
    """
    live = [_Episode(example) for example in examples]
    for attempt in range(attempts):
        if not live:
            return
        progress.turn(attempt + 1, len(live))
        requests = [
            Request(asking.prompt(e.example, e.turns), seed_of(seed, e.example.split, e.example.index, attempt))
            for e in live
        ]
        going_on = []
        for number, completion in engine.generate(requests, sampling):
            episode = live[number]
            progress.answered(completion.tokens)
            ended = _take(asking.task, episode, completion, model, sampling)
            if ended or attempt == attempts - 1:
                yield _sample(asking, episode, model)
            else:
                going_on.append(number)
        live = [live[number] for number in sorted(going_on)]


def no_room(model: str, example: Example, prompt_tokens: int, answer_tokens: int) -> TaskError:
    """The error for a prompt that leaves no room in a model's context."""
    return TaskError(
        f"`{model}`: the prompt of example {example.index} of `{example.split}` has {prompt_tokens:,} tokens, and with "
        f"{answer_tokens:,} for the answer that is more than its context; lower `--max-tokens`, or shorten the prompt "
        "(`--prompt FILE`)"
    )


def _take(task: Task, episode: _Episode, completion: Completion, model: str, sampling: Sampling) -> bool:
    """Grade an answer; whether the episode has ended."""
    if completion.finish == "context":
        if not episode.turns:
            raise no_room(model, episode.example, completion.prompt_tokens, sampling.max_tokens)
        return True
    grade = task.grade(episode.example.data, completion.text)
    episode.turns.append(Turn(completion.text, grade))
    episode.tokens += completion.tokens
    episode.cut += completion.finish == "length"
    return grade.correct


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
