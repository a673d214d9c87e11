"""What is asked of every model alike: the examples, how they are put, how answers are chosen, by which engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from evalkit.engines.base import Engine, Sampling
from evalkit.errors import TaskError
from evalkit.prompt_template import PromptTemplate
from evalkit.run import Asking
from evalkit.settings import Kind, Settings
from evalkit.task import TEST, Example, Task
from surgery.wording import quoted

RETRY = 300  # bytes that a retry message and the template's marks may take


@dataclass(frozen=True)
class Evaluation:
    """An evaluation without its models.

    - `n` examples (default: as many as the task says) of each of `splits` are drawn by `seed` from `part` of the data.
    - A model has up to `attempts` tries at each; answers are chosen by `sampling`.
    - `template` replaces the task's question; without `chat`, prompts are plain text; `chat_template` replaces
      those of the models.
    - With `loss`, reference answers are scored as well; without `answers` nothing else is done.
    - `engine` and `options`: see `evalkit.engines.make_engine`.

    Raises TaskError for values that make no sense.
    """

    task: Task
    engine: str
    splits: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None
    seed: int = 0
    part: str = TEST
    attempts: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    template: PromptTemplate | None = None
    chat: bool = True
    chat_template: str | None = None
    loss: bool = False
    answers: bool = True

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("attempts", self.attempts), ("max_tokens", self.sampling.max_tokens)):
            if value is not None and value < 1:
                raise TaskError(f"found {name} = {value}; expected 1 or more")
        if not (math.isfinite(self.sampling.temperature) and self.sampling.temperature >= 0):
            raise TaskError(f"found temperature = {self.sampling.temperature}; expected 0 (greedy) or more")
        if not self.splits:
            raise TaskError(f"found no split to score; the splits of {self.task.name}: {quoted(self.task.splits)}")
        if len(set(self.splits)) < len(self.splits):
            raise TaskError(f"found a split twice: {', '.join(self.splits)}; name each once")

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """Those of all splits, in order. Raises TaskError."""
        drawn = (self.task.examples(split, self.n, self.seed, self.part) for split in self.splits)
        return tuple(example for examples in drawn for example in examples)

    @cached_property
    def asking(self) -> Asking:
        """How the questions are put. Raises TaskError where the template fails."""
        if self.template is None:
            return Asking(self.task, {}, self.chat)
        questions = {(e.split, e.index): self.template.render(e.data) for e in self.examples}
        if not all(map(str.strip, questions.values())) or len(set(questions.values())) == 1 < len(questions):
            raise TaskError(
                f"{self.template.origin}: every prompt is the same or empty; name the example's data in it: "
                f"{quoted(f'{{{{ {name} }}}}' for name in self.examples[0].data)}"
            )
        return Asking(self.task, questions, self.chat)

    @property
    def context(self) -> int:
        """Tokens that a conversation may come to, at most: a token stands for a byte or more."""
        longest = max(
            sum(len(message["content"].encode()) for message in self.asking.conversation(example))
            for example in self.examples
        )
        if self.loss:
            references = max(len(self.task.reference(example.data).encode()) for example in self.examples)
            longest = max(longest, longest + references - self.sampling.max_tokens)
        return longest + RETRY + self.attempts * (self.sampling.max_tokens + RETRY)

    def settings(self, kind: Kind, engine: Engine) -> Settings:
        """What the results are kept under; `engine` is the one that was made of `engine` and `options`."""
        sampled = kind == "answers"
        return Settings(
            kind=kind,
            task=self.task.name,
            task_version=self.task.version,
            parameters=self.task.identity,
            part=self.part,
            seed=self.seed,
            engine=self.engine,
            engine_options=dict(engine.identity),
            versions=dict(engine.versions()),
            chat=self.chat,
            prompt=None if self.template is None else self.template.text,
            chat_template=self.chat_template,
            attempts=self.attempts if sampled else 0,
            sampling=asdict(self.sampling) if sampled else {},
        )
