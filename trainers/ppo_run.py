"""Proximal policy optimisation over episodes of several turns, as in arXiv 2501.17161 and 2509.12235.

An action is a whole response, its reward the grade's; the turns of an episode are the steps that advantages look along
(`trainers.gae`). Episodes are played, then learned from for some epochs (`trainers.ppo_learner`), and so on.
Where we depart from the papers' code: probabilities are those of the tempered distribution that was drawn from
(`trainers.policy`), and weights are float32.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from accelerate import Accelerator

from evalkit.engines.base import Sampling
from evalkit.run import Asking
from evalkit.task import Example, Task
from surgery.errors import Fault
from trainers import data
from trainers.actors import Actor, EngineActor, Game, LiveActor
from trainers.config import PpoConfig
from trainers.errors import ConfigError, TrainingError
from trainers.measure import Problems
from trainers.opening import Opened
from trainers.order import Order
from trainers.parent import load_network
from trainers.plots import plot_updates
from trainers.ppo_learner import Learner, NotFiniteError, Turns
from trainers.precision import in_bfloat16
from trainers.progress import Progress
from trainers.recorder import Recorder
from trainers.report import Report
from trainers.rollout import Episode, check_room
from trainers.session import Session
from trainers.sharding import check_whole


def run_ppo(config: PpoConfig, resume: bool, overwrite: bool, progress: Progress) -> Report:
    """Train as the configuration says. Whatever can be found wrong before the first episode is."""
    opened = Opened("ppo", config)
    task, examples = data.problems(config.data, config.seed)
    measured = data.success_problems(config)
    about = {"seed": config.seed, "problems": len(examples), "digest": data.digest(examples)}
    with opened.session(resume, overwrite, about) as session:
        if session.finished:
            return session.report()
        if config.episodes < session.processes.num_processes:
            message = (
                f"found {config.episodes} for {session.processes.num_processes} devices; expected one each or more"
            )
            raise ConfigError([Fault("episodes", message)])
        recorder = opened.recorder(session, about)
        loop = _Loop(config, opened, task, examples, measured, session, recorder, progress)
        with loop.actor:
            loop.run()
        report = recorder.finish(config.updates, task=config.data.task)
        if session.main:
            plot_updates(session.log.rows, session.directory.path)
            session.directory.finish(report.json())
        return report


class _Loop:
    """Plays, learns, measures and saves, update after update."""

    def __init__(
        self,
        config: PpoConfig,
        opened: Opened,
        task: Task,
        played: Sequence[Example],
        measured: Mapping[str, Sequence[Example]],
        session: Session,
        recorder: Recorder,
        progress: Progress,
    ) -> None:
        self._config, self._session, self._recorder, self._progress = config, session, recorder, progress
        self._order = Order(played, config.seed)
        self._accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision="bf16" if in_bfloat16(config) else "no",
            log_with=list(config.report_to) or None,
            project_dir=config.out,
        )
        asking = Asking(task, {}, config.chat)
        attempts, tokens = config.attempts or task.attempts, config.rollout.max_tokens or task.max_tokens
        self._game = Game(asking, Sampling(config.rollout.temperature, tokens), attempts, config.seed)
        greedy = Sampling(config.success.temperature, tokens)
        self._problems = {
            split: Problems(asking, examples, greedy, attempts, config.seed) for split, examples in measured.items()
        }
        shown = [example for examples in (*measured.values(), played) for example in examples]
        check_room(asking, shown, opened.renderer, self._game.sampling)
        network = load_network(opened.parent, config)
        reference = load_network(opened.parent, config) if config.kl else None
        self._learner = Learner(config, network, reference, self._accelerator)
        if config.rollout.engine == "transformers":
            check_whole(self._accelerator, "set `rollout.engine` to `vllm`")
            self.actor: Actor = LiveActor(network, opened.renderer, session, self._accelerator.autocast)
        else:
            self.actor = EngineActor(
                config.rollout, opened.chat_template, session, self._game.context(shown),
                lambda place: recorder.export(place, network, self._learner.weights()),
            )  # fmt: skip

    def run(self) -> None:
        """All updates, or those that an earlier run has left."""
        config, session = self._config, self._session
        self._accelerator.init_trackers("surgery")
        done = session.step or 0
        if done:
            self._accelerator.load_state(str(session.state(done)))
        else:
            self._note(0, self._measure(0))
        for update in range(done + 1, config.updates + 1):
            began = time.monotonic()
            self._progress.phase(f"update {update} of {config.updates}: playing", config.episodes)
            examples = self._order.take((update - 1) * config.episodes, config.episodes)
            episodes = self.actor.episodes(self._game, examples, update, self._progress)
            turns = self._learner.judge(episodes)
            self._progress.phase(f"update {update} of {config.updates}: learning", config.epochs * config.mini_batches)
            learned = self._learned(turns, update)
            self.actor.changed()
            figures = {**_played(episodes), **turns.figures(), **learned, "seconds": time.monotonic() - began}
            save = update == config.updates or (config.save_every is not None and update % config.save_every == 0)
            if save or update % config.success.every == 0:
                figures.update(self._measure(update))
            self._note(update, figures)
            if save:
                self._save(update)
        self._accelerator.end_training()

    def _learned(self, turns: Turns, update: int) -> dict[str, float]:
        try:
            return self._learner.learn(turns, update, self._progress)
        except NotFiniteError as error:
            raise TrainingError(
                f"update {update}: {error}; lower `optimizer.learning_rate`, or look for NaN in the "
                f"checkpoint{self._recorder.last_good}"
            ) from error

    def _measure(self, update: int) -> dict[str, float]:
        """The share of problems solved, by split."""
        self._progress.phase(f"update {update}: measuring", len(self._problems))
        samples = {}
        for split, problems in self._problems.items():
            samples[split] = self.actor.samples(problems)
            self._progress.step({split: sum(sample.correct for sample in samples[split]) / len(samples[split])})
        return self._recorder.scores(update, samples)

    def _note(self, update: int, figures: Mapping[str, float]) -> None:
        self._recorder.figures(update, figures)
        self._accelerator.log(dict(figures), step=update)

    def _save(self, update: int) -> None:
        """A checkpoint and, unless this is the end, the state to go on from."""
        self._recorder.checkpoint(update, self._learner.network, self._learner.weights())
        if update < self._config.updates:
            with self._session.saving(update), _quiet_accelerate():
                self._accelerator.save_state(str(self._session.state(update)))


@contextmanager
def _quiet_accelerate() -> Iterator[None]:
    """Without accelerate's word that a tied head is saved once."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _played(episodes: Sequence[Episode]) -> dict[str, float]:
    """How the episodes went."""
    return {
        "reward": sum(sum(episode.rewards) for episode in episodes) / len(episodes),
        "success": sum(episode.solved for episode in episodes) / len(episodes),
        "turns": sum(len(episode.steps) for episode in episodes) / len(episodes),
    }
