"""What is kept of each example that a model has answered, or whose reference answer it has scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from evalkit.task import Grade


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode: the prompt, an answer and a grade a turn, the last turn's reward, and whether it was solved.

    `index` and `key` are the example's (see `evalkit.task.Example`), `tokens` counts what was generated in all
    turns, `cut` the answers that reached `max_tokens`. An episode whose conversation outgrew the model's context
    has fewer turns.
    """

    task: str
    split: str
    index: int
    key: str
    model: str
    prompt: str
    completions: tuple[str, ...]
    grades: tuple[Grade, ...]
    reward: float
    correct: bool
    tokens: int
    cut: int

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The sample that was written; raises KeyError or TypeError for anything else."""
        grades = tuple(Grade(**grade) for grade in data["grades"])
        return cls(**{**data, "grades": grades, "completions": tuple(data["completions"])})


@dataclass(frozen=True, slots=True)
class Loss:
    """The negative log-likelihood of one reference answer in nats, and the number of its tokens."""

    task: str
    split: str
    index: int
    key: str
    model: str
    answer: str
    nll: float
    tokens: int

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The loss that was written; raises TypeError for anything else."""
        return cls(**data)
