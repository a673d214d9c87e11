"""What reinforcement learning plays and is measured on, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from evalkit.engines.base import Sampling
from evalkit.run import Asking
from trainers import data
from trainers.actors import Actor, EngineActor, Game, LiveActor
from trainers.config import RlTraining
from trainers.measure import Problems
from trainers.opening import Opened
from trainers.order import Order
from trainers.progress import Progress
from trainers.recorder import Recorder
from trainers.rollout import Episode, check_room
from trainers.sharding import check_whole

Weights = Callable[[], Mapping[str, torch.Tensor]]  # of a network by its own names; every process has to ask


class Player:
    """Plays problems in the run's order, and measures success on others that are never played.

    An update takes `count` problems, and `repeats` episodes of each, of up to `attempts` turns (default: the task's).
    Raises TaskError, DataError, and TrainingError where a prompt has no room in the model's context.
    """

    def __init__(
        self, config: RlTraining, opened: Opened, count: int, repeats: int = 1, attempts: int | None = None
    ) -> None:
        self._config, self._opened = config, opened
        self._count, self._repeats = count, repeats
        task, played = data.problems(config.data, config.seed)
        measured = data.success_problems(config)
        asking = Asking(task, {}, config.chat)
        self.tokens = config.rollout.max_tokens or task.max_tokens
        turns = attempts or task.attempts
        self._game = Game(asking, Sampling(config.rollout.temperature, self.tokens), turns, config.seed)
        chosen = Sampling(config.success.temperature, self.tokens)
        self._problems = {
            split: Problems(asking, examples, chosen, turns, config.seed) for split, examples in measured.items()
        }
        self._order = Order(played, config.seed)
        shown = [*played, *(example for examples in measured.values() for example in examples)]
        check_room(asking, shown, opened.renderer, self._game.sampling)
        self._context = self._game.context(shown)
        self.about = {
            "seed": config.seed,
            "problems": len(played),
            "digest": data.digest(played),
            "measured": {split: data.digest(examples) for split, examples in measured.items()},
        }
        self._actor: Actor | None = None

    @contextmanager
    def acting(
        self, network: Any, accelerator: Accelerator, weights: Weights, recorder: Recorder, progress: Progress
    ) -> Iterator[None]:
        """Play by this network, or by an engine that takes its weights, which is ended afterwards.

        Raises TrainingError where no process has the whole network.
        """
        self._recorder, self._progress = recorder, progress
        rollout, opened = self._config.rollout, self._opened
        if rollout.engine == "transformers":
            check_whole(accelerator, "set `rollout.engine` to `vllm`")
            self._actor = LiveActor(network, opened.renderer, recorder.session, accelerator.autocast)
        else:
            self._actor = EngineActor(
                rollout, opened.chat_template, recorder.session, self._context,
                lambda place: recorder.export(place, network, weights()),
            )  # fmt: skip
        with self._actor:
            yield

    def play(self, update: int) -> list[Episode]:
        """The episodes of an update, those of a problem one after the other; all of them, in every process."""
        problems = self._order.take((update - 1) * self._count, self._count)
        examples = [example for example in problems for _ in range(self._repeats)]
        self._progress.phase(f"update {update} of {self._config.updates}: playing", len(examples))
        return self._acting().episodes(self._game, examples, update, self._progress)

    def changed(self) -> None:
        """The network's weights are others than before."""
        self._acting().changed()

    def measured(self, update: int) -> dict[str, float]:
        """The share of held-out problems solved, by split."""
        self._progress.phase(f"update {update}: measuring", len(self._problems))
        samples = {}
        for split, problems in self._problems.items():
            samples[split] = self._acting().samples(problems)
            self._progress.step({split: sum(sample.correct for sample in samples[split]) / len(samples[split])})
        return self._recorder.scores(update, samples)

    def _acting(self) -> Actor:
        assert self._actor is not None, "episodes are played while the network is trained"
        return self._actor
