"""A run of group relative policy optimisation, from its configuration to its report.

Episodes have one turn; everything else about them is as with PPO: problems, grades, engines, measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from evalkit.engines.base import Sampling
from evalkit.run import Asking
from evalkit.task import Example, Task
from trainers import data
from trainers.actors import Actor, Autocast, EngineActor, Game, LiveActor
from trainers.config import GrpoConfig
from trainers.measure import Problems
from trainers.opening import Opened
from trainers.order import Order
from trainers.parent import load_network
from trainers.plots import plot_updates
from trainers.progress import Progress
from trainers.recorder import Recorder
from trainers.report import Report
from trainers.rollout import Episode
from trainers.session import Session

Weights = Callable[[], Mapping[str, Any]]  # tensors by name


def run_grpo(config: GrpoConfig, resume: bool, overwrite: bool, progress: Progress) -> Report:
    """Train as the configuration says. Whatever can be found wrong before the first episode is."""
    opened = Opened("grpo", config)
    task, examples = data.problems(config.data, config.seed)
    measured = data.success_problems(config)
    about = {"seed": config.seed, "problems": len(examples), "digest": data.digest(examples)}
    with opened.session(resume, overwrite, about) as session:
        if session.finished:
            return session.report()
        from trainers.grpo import optimise

        recorder = opened.recorder(session, about)
        tokens = config.rollout.max_tokens or task.max_tokens
        player = _Player(config, opened, task, tokens, examples, measured, session, recorder, progress)
        network = load_network(opened.parent, config)
        optimise(config, network, opened.renderer.tokenizer, tokens, player, session, recorder, progress)
        report = recorder.finish(config.updates, task=config.data.task)
        if session.main:
            plot_updates(session.log.rows, session.directory.path)
            session.directory.finish(report.json())
        return report


class _Player:
    """Plays problems in the run's order, several answers to each, and measures success on others."""

    def __init__(
        self,
        config: GrpoConfig,
        opened: Opened,
        task: Task,
        tokens: int,
        played: Sequence[Example],
        measured: Mapping[str, Sequence[Example]],
        session: Session,
        recorder: Recorder,
        progress: Progress,
    ) -> None:
        self._config, self._opened, self._session = config, opened, session
        self._recorder, self._progress = recorder, progress
        self._order = Order(played, config.seed)
        asking = Asking(task, {}, config.chat)
        self._game = Game(asking, Sampling(config.rollout.temperature, tokens), 1, config.seed)
        greedy = Sampling(config.success.temperature, tokens)
        self._problems = {
            split: Problems(asking, examples, greedy, 1, config.seed) for split, examples in measured.items()
        }
        self._context = self._game.context([*played, *(each for found in measured.values() for each in found)])
        self._actor: Actor | None = None

    @contextmanager
    def acting(self, network: Any, autocast: Autocast, weights: Weights) -> Iterator[None]:
        """Play by this network, or by an engine that takes its weights, which is ended afterwards."""
        config, opened = self._config, self._opened
        if config.rollout.engine == "transformers":
            self._actor = LiveActor(network, opened.renderer, self._session, autocast)
        else:
            self._actor = EngineActor(
                config.rollout, opened.chat_template, self._session, self._context,
                lambda place: self._recorder.export(place, network, weights()),
            )  # fmt: skip
        with self._actor:
            yield

    def play(self, update: int) -> list[Episode]:
        """The episodes of an update, those of a group one after the other; all of them, in every process."""
        config = self._config
        problems = self._order.take((update - 1) * config.prompts, config.prompts)
        examples = [example for example in problems for _ in range(config.generations)]
        self._progress.phase(f"update {update} of {config.updates}: playing", len(examples))
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
