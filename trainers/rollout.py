"""Episodes to learn from: a task played by the model as it is, with the tokens that it drew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evalkit.engines.base import Completion, Engine, Sampling
from evalkit.rendering import Renderer
from evalkit.run import Asking, Live, take_turns
from evalkit.task import Example, Grade
from trainers.errors import TrainingError
from trainers.progress import Progress


@dataclass(frozen=True, slots=True)
class Step:
    """One turn: a prompt and the action, which is the whole response to it.

    `prompt` and `response` are the token ids that the model was given and drew, the latter with the one that ended it,
    where it did; text tokenised again might give others. `grade.reward` is the reward.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    text: str
    grade: Grade


@dataclass(frozen=True, slots=True)
class Episode:
    """The turns that an example has taken, at least one."""

    example: Example
    steps: tuple[Step, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """Of each turn."""
        return tuple(step.grade.reward for step in self.steps)

    @property
    def solved(self) -> bool:
        """Whether the last answer was right."""
        return self.steps[-1].grade.correct


@dataclass
class _Playing(Live):
    repetition: int = 0
    steps: list[Step] = field(default_factory=list)

    def name(self, attempt: int) -> str:
        return f"{self.example.split}/{self.example.index}/{self.repetition}/{attempt}"


def rollout(
    asking: Asking,
    examples: Sequence[Example],
    engine: Engine,
    sampling: Sampling,
    attempts: int,
    seed: int,
    progress: Progress | None = None,
) -> list[Episode]:
    """Play an episode of each example with the engine's model, in the order of the examples.

    A turn of all live episodes is one batch. A wrong answer goes back with the verifier's message; an episode ends when
    it is solved, out of attempts, or out of context. An example may come several times. The seed of an answer depends
    on `seed`, the example, how often it came before, and the turn alone; so devices that share examples, and
    updates, each need a seed of their own (`evalkit.run.seed_of`). `progress` hears of each finished episode, as a
    step with `success`, the share solved so far. Raises TrainingError where a first prompt has no room in the model's
    context, or the engine does not give tokens, and EngineError.
    """
    seen: Counter[tuple[str, int]] = Counter()
    episodes = []
    for example in examples:
        episodes.append(_Playing(example, repetition=seen[example.split, example.index]))
        seen[example.split, example.index] += 1
    finished = solved = 0
    for episode, completion in take_turns(asking, episodes, engine, sampling, attempts, seed, _unheard):
        if not episode.turns:
            raise _no_room(episode.example, completion.prompt_tokens, sampling)
        if completion.finish != "context":
            episode.steps.append(_step(engine, episode, completion))
        if completion.finish == "context" or episode.solved or len(episode.turns) == attempts:
            finished, solved = finished + 1, solved + episode.solved
            if progress is not None:
                progress.step({"success": solved / finished})
    return [Episode(episode.example, tuple(episode.steps)) for episode in episodes]


def _step(engine: Engine, episode: Live, completion: Completion) -> Step:
    """The turn just taken. An engine in this process draws one token at least, if only the one that ends an answer."""
    if not completion.prompt_ids or not completion.ids:
        raise TrainingError(
            f"the engine `{engine.name}` does not give the tokens of its answers, which are what is learned from; set "
            "`rollout.engine` to `transformers` or `vllm`"
        )
    return Step(completion.prompt_ids, completion.ids, completion.text, episode.turns[-1].grade)


def check_room(asking: Asking, examples: Iterable[Example], renderer: Renderer, sampling: Sampling) -> None:
    """Raise TrainingError where a first prompt and its answer have no room in the model's context."""
    for example in examples:
        tokens = len(renderer.tokens(asking.prompt(example)))
        if not renderer.room(tokens, sampling.max_tokens):
            raise _no_room(example, tokens, sampling)


def _no_room(example: Example, prompt_tokens: int, sampling: Sampling) -> TrainingError:
    return TrainingError(
        f"the prompt of example {example.index} of `{example.split}` has {prompt_tokens:,} tokens, and with "
        f"{sampling.max_tokens:,} for the answer that is more than the model's context; lower `rollout.max_tokens`, or "
        "choose `data.parameters` that make shorter prompts"
    )


def _unheard(turn: int, live: int) -> None:
    """Nobody asks how many turns are under way."""
