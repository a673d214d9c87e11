"""How often a network that is being trained solves problems that it does not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.engines.base import Engine, Sampling
from evalkit.progress import Silence
from evalkit.run import Asking, play
from evalkit.samples import Sample
from evalkit.task import Example


class _Nothing:
    """Keeps no turns: a measurement that is cut short is made again."""

    def get(self, name: str, /) -> Mapping[str, Any] | None:  # noqa: ARG002
        return None

    def put(self, name: str, row: Mapping[str, Any], /) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Problems:
    """Problems of a split, and how they are put and answered."""

    asking: Asking
    examples: Sequence[Example]
    sampling: Sampling
    attempts: int
    seed: int

    def play(self, engine: Engine, examples: Sequence[Example]) -> list[Sample]:
        """An episode of each of some of the examples, in their order. Raises TaskError and EngineError."""
        nothing = _Nothing()
        played = {
            sample.index: sample
            for sample in play(
                self.asking, examples, engine, "", self.sampling, self.attempts, self.seed, nothing, Silence()
            )
        }
        return [played[example.index] for example in examples]
