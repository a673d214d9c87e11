"""Who plays the episodes: the network that is being trained, or an engine that is given its weights.

However they are played, every process gets all of them, in the same order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, gather_object

from evalkit.engines import make_engine
from evalkit.engines.base import Engine, Model, Sampling
from evalkit.rendering import Renderer
from evalkit.run import Asking, seed_of
from evalkit.samples import Sample
from evalkit.task import Example
from surgery.closing import Closing
from surgery.errors import SurgeryError
from trainers.config import Rollout
from trainers.errors import TrainingError
from trainers.live_engine import LiveEngine
from trainers.measure import Problems
from trainers.progress import Progress
from trainers.rollout import Episode, rollout
from trainers.session import Session

T = TypeVar("T")
Autocast = Callable[[], AbstractContextManager[Any]]  # the context of a run's precision
MESSAGE = 300  # bytes that a verifier's message and the template's marks may take


@dataclass(frozen=True)
class Game:
    """How problems are put and answered; `seed` is that of the run."""

    asking: Asking
    sampling: Sampling
    attempts: int
    seed: int

    def context(self, examples: Sequence[Example]) -> int:
        """Tokens that a conversation may come to, at most: a token stands for a byte or more."""
        longest = max(
            sum(len(message["content"].encode()) for message in self.asking.conversation(example))
            for example in examples
        )
        return longest + MESSAGE + self.attempts * (self.sampling.max_tokens + MESSAGE)


class Actor(Closing):
    """Plays episodes by the network's present weights. Use as a context manager."""

    @abstractmethod
    def episodes(self, game: Game, examples: Sequence[Example], update: int, progress: Progress) -> list[Episode]:
        """An episode of each example, with random numbers of this update's own."""

    @abstractmethod
    def samples(self, problems: Problems) -> list[Sample]:
        """An episode of each problem, for measuring."""

    def changed(self) -> None:
        """The network's weights are others than before."""


class LiveActor(Actor):
    """Every process plays its share with its own copy of the network. `autocast` gives the precision's context."""

    def __init__(self, network: Any, renderer: Renderer, session: Session, autocast: Autocast) -> None:
        self._engine = LiveEngine(network, renderer)
        self._rank, self._count = session.processes.process_index, session.processes.num_processes
        self._autocast = autocast

    def episodes(self, game: Game, examples: Sequence[Example], update: int, progress: Progress) -> list[Episode]:
        """An episode of each example, with random numbers of this update's and process's own."""
        seed = seed_of(game.seed, update, self._rank)
        with self._autocast():
            own = rollout(
                game.asking, self._share(examples), self._engine, game.sampling, game.attempts, seed, progress
            )  # fmt: skip
        return self._gathered(own)

    def samples(self, problems: Problems) -> list[Sample]:
        """An episode of each problem, shared out among the processes."""
        with self._autocast():
            return self._gathered(problems.play(self._engine, self._share(problems.examples)))

    def close(self) -> None:
        """Nothing is held."""

    def _share(self, items: Sequence[T]) -> Sequence[T]:
        return items[self._rank :: self._count]

    def _gathered(self, own: list[T]) -> list[T]:
        """What every process has played, in the order of the examples."""
        if self._count == 1:
            return own
        places = [(self._rank + number * self._count, item) for number, item in enumerate(own)]
        return [item for _, item in sorted(gather_object(places), key=lambda place: place[0])]


class EngineActor(Actor):
    """The main process plays by an engine of its own, vLLM's say, which takes the weights from a directory.

    `write(directory)` saves the network there; it is called in every process after `changed`, when they are needed.
    """

    def __init__(
        self, config: Rollout, template: str | None, session: Session, context: int, write: Callable[[Path], None]
    ) -> None:
        self._session, self._write, self._context = session, write, context
        self._engine: Engine | None = make_engine(config.engine, config.options, template) if session.main else None
        self._place = session.states / "weights"
        self._loaded, self._version = -1, 0

    def changed(self) -> None:
        """They are to be written and loaded anew, once they are needed."""
        self._version += 1

    def episodes(self, game: Game, examples: Sequence[Example], update: int, progress: Progress) -> list[Episode]:
        """An episode of each example, with random numbers of this update's own."""
        seed = seed_of(game.seed, update, 0)
        return self._in_main(
            lambda engine: rollout(game.asking, examples, engine, game.sampling, game.attempts, seed, progress)
        )

    def samples(self, problems: Problems) -> list[Sample]:
        """An episode of each problem."""
        return self._in_main(lambda engine: problems.play(engine, problems.examples))

    def close(self) -> None:
        """End the engine."""
        if self._engine is not None:
            self._engine.close()

    def _in_main(self, work: Callable[[Engine], list[T]]) -> list[T]:
        """What the main process gets by the engine with the present weights. Raises TrainingError in all of them."""
        if self._loaded != self._version:
            self._write(self._place)
        found: list[Any] = [None, None]
        if self._engine is not None:
            try:
                if self._loaded != self._version:
                    name = f"version {self._version}"
                    self._engine.load(Model(name, f"{self._version:016x}", self._place), self._context)
                found = [work(self._engine), None]
            except SurgeryError as error:
                if self._session.processes.num_processes == 1:
                    raise
                found = [None, str(error)]
        self._loaded = self._version
        if self._session.processes.num_processes > 1:
            broadcast_object_list(found)
        if found[1] is not None:
            raise TrainingError(found[1])
        result: list[T] = found[0]
        return result
