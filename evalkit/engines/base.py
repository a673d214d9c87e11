"""What an engine is: it holds one checkpoint at a time and turns prompts into completions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from evalkit.task import Conversation
from surgery.closing import Closing

Prompt = str | Conversation  # plain text, or messages for the chat template
Finish = Literal["stop", "length", "context"]


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint to be scored.

    `name` is what the user typed, `digest` names its content (see `evalkit.digest`), `path` is the directory of
    its files: None for a model that a server holds; of a model with adapters the base's, until it is merged (see
    `evalkit.models.complete`).
    """

    name: str
    digest: str
    path: Path | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are chosen: greedily at temperature 0; `stop` are texts that end an answer and are cut off."""

    temperature: float = 0.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and the seed of its own randomness: up to rounding, the answer depends on no other request."""

    prompt: Prompt
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer, and how many tokens the prompt and the answer took.

    `finish` is `stop` (the model ended it), `length` (`max_tokens` reached) or `context`: the model's context has no
    room for the prompt and `max_tokens` more; nothing was generated.

    Where something was, engines in this process also give the tokens themselves, which text does not tell for sure:
    `prompt_ids`, and `ids` with the token that ended the answer and those of a stop text that `text` lacks.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int
    prompt_ids: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenScore:
    """Of one given token: its log-probability (natural, in float32), and whether it was the likeliest."""

    logprob: float
    greedy: bool


class Engine(Closing):
    """Holds one model at a time. Use as a context manager, or call `close`.

    Engines are made without work; whatever is slow or may fail happens in `load`.
    """

    name: ClassVar[str]
    scores: ClassVar[bool] = True  # whether `score` is to be had

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """The given options that answers depend on, as plain data; not those that only cost time or memory."""

    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """The packages that answers depend on, and their versions. Starts nothing. Raises EngineError."""

    @abstractmethod
    def load(self, model: Model, context: int) -> None:
        """Make `model` the one that answers, from here on.

        `context` is how many tokens a prompt and its answer may need, as far as is known; engines that reserve
        memory for it take the smaller of this and what the model can. Raises EngineError.
        """

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Answer all requests as one batch, and yield each answer with its request's number as it is finished.

        Requests without room (`finish == "context"`) come first. Raises EngineError.
        """

    @abstractmethod
    def score(self, prompts: Sequence[tuple[Prompt, str]], end: bool) -> Iterator[tuple[int, list[TokenScore]]]:
        """Score given answers token by token; with `end`, the token that ends an answer belongs to it.

        Yields (number of the pair, scores of the answer's tokens). Raises EngineError.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back memory and processes. The engine is not used again."""
