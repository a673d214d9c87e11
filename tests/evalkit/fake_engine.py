"""An engine without a model: answers come from a function, and every call is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

from evalkit.engines.base import Completion, Engine, Model, Prompt, Request, Sampling, TokenScore

Answer = Callable[[str, Prompt], str]  # the loaded model's name and the prompt -> the answer


class FakeEngine(Engine):
    """`answer` says what the loaded model says; `die_after` answers, the engine breaks; `room` is its context.

    Its tokens are characters.
    """

    name: ClassVar[str] = "fake"

    def __init__(self, answer: Answer, die_after: int | None = None, room: int = 10**9) -> None:
        self.answer = answer
        self.die_after = die_after
        self.room = room
        self.loaded: list[Model] = []
        self.batches: list[list[Request]] = []
        self.scored: list[tuple[Prompt, str]] = []
        self.closed = False

    @property
    def identity(self) -> Mapping[str, object]:
        return {}

    def versions(self) -> Mapping[str, str]:
        return {"fake": "1"}

    def load(self, model: Model, context: int) -> None:  # noqa: ARG002 - the interface's
        self.loaded.append(model)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        self.batches.append(list(requests))
        order = sorted(range(len(requests)), key=lambda i: (self._fits(requests[i], sampling), -i))
        for i in order:  # out of order, as engines are
            if not self._fits(requests[i], sampling):
                yield i, Completion("", "context", len(text(requests[i].prompt)), 0)
                continue
            if self.die_after == 0:
                raise RuntimeError("the engine broke")
            self.die_after = None if self.die_after is None else self.die_after - 1
            answer = self.answer(self.loaded[-1].name, requests[i].prompt)
            asked = text(requests[i].prompt)
            yield (
                i,
                Completion(answer, "stop", len(asked), len(answer), tuple(map(ord, asked)), tuple(map(ord, answer))),
            )

    def _fits(self, request: Request, sampling: Sampling) -> bool:
        return len(text(request.prompt)) + sampling.max_tokens <= self.room

    def score(self, prompts: Sequence[tuple[Prompt, str]], end: bool) -> Iterator[tuple[int, list[TokenScore]]]:
        for i, (prompt, answer) in enumerate(prompts):
            self.scored.append((prompt, answer))
            yield i, [TokenScore(-0.5, True)] * (len(answer) + end)

    def close(self) -> None:
        self.closed = True


def text(prompt: Prompt) -> str:
    """A prompt as one text."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
