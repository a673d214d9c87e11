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
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from evalkit.errors import EngineError
from surgery.errors import Fault
from trainers.config import PpoConfig
from trainers.errors import ConfigError, TrainingError
from trainers.opening import Opened
from trainers.parent import load_network
from trainers.player import Player
from trainers.ppo_learner import Learner, NotFiniteError
from trainers.precision import in_bfloat16
from trainers.progress import Progress
from trainers.recorder import Recorder
from trainers.report import Report
from trainers.rollout import Episode
from trainers.sharding import keep_float32, unused_parameters


def run_ppo(config: PpoConfig, resume: bool, overwrite: bool, progress: Progress) -> Report:
    """Train as the configuration says. Whatever can be found wrong before the first episode is."""
    opened = Opened("ppo", config)
    if config.episodes < opened.processes:
        message = f"found {config.episodes} for {opened.processes} devices; expected one each or more"
        raise ConfigError([Fault("episodes", message)])
    player = Player(config, opened, config.episodes, attempts=config.attempts)
    with opened.session(resume, overwrite, player.about) as session:
        if session.finished:
            return session.report()
        recorder = opened.recorder(session, player.about)
        AcceleratorState._reset_state()  # or an earlier run's precision in this process would be in the way
        network = load_network(opened.parent, config)
        reference = load_network(opened.parent, config) if config.kl else None
        accelerator = Accelerator(
            cpu=session.processes.device.type == "cpu",
            mixed_precision="bf16" if in_bfloat16(config) else "no",
            log_with=list(config.report_to) or None,
            project_dir=config.out,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters(network))],
        )
        keep_float32(accelerator)
        learner = Learner(config, network, reference, accelerator)
        with player.acting(network, accelerator, learner.weights, recorder, progress):
            _Loop(config, accelerator, learner, player, recorder, progress).run()
        return recorder.finish(config.updates, task=config.data.task)


class _Loop:
    """Plays, learns, measures and saves, update after update."""

    def __init__(
        self,
        config: PpoConfig,
        accelerator: Accelerator,
        learner: Learner,
        player: Player,
        recorder: Recorder,
        progress: Progress,
    ) -> None:
        self._config, self._accelerator, self._learner = config, accelerator, learner
        self._player, self._recorder, self._progress = player, recorder, progress

    def run(self) -> None:
        """All updates, or those that an earlier run has left. Raises TrainingError where the network breaks."""
        config, done = self._config, self._recorder.session.step or 0
        self._accelerator.init_trackers("surgery")
        if done:
            with self._recorder.session.loading():
                self._accelerator.load_state(str(self._recorder.session.state(done)))
        else:
            self._note(0, self._player.measured(0))
        for update in range(done + 1, config.updates + 1):
            try:
                figures = self._update(update)
                save = update == config.updates or (config.save_every is not None and update % config.save_every == 0)
                if save or update % config.success.every == 0:
                    figures.update(self._player.measured(update))
            except NotFiniteError as error:
                raise TrainingError(
                    f"update {update}: {error}; lower `optimizer.learning_rate`, or look for NaN in the checkpoint"
                    f"{self._recorder.last_good}"
                ) from error
            except EngineError as error:
                raise TrainingError(f"update {update}: {error}{self._recorder.last_good}") from error
            self._note(update, figures)
            if save:
                self._save(update)
        self._accelerator.end_training()

    def _update(self, update: int) -> dict[str, float]:
        """Play and learn; gives the update's figures."""
        config, began = self._config, time.monotonic()
        episodes = self._player.play(update)
        turns = self._learner.judge(episodes)
        self._progress.phase(f"update {update} of {config.updates}: learning", config.epochs * config.mini_batches)
        learned = self._learner.learn(turns, update, self._progress)
        self._player.changed()
        return {**_played(episodes), **turns.figures(), **learned, "seconds": time.monotonic() - began}

    def _note(self, update: int, figures: Mapping[str, float]) -> None:
        self._recorder.figures(update, figures)
        self._accelerator.log(dict(figures), step=update)

    def _save(self, update: int) -> None:
        """A checkpoint and, unless this is the end, the state to go on from."""
        self._recorder.checkpoint(update, self._learner.network, self._learner.weights())
        if update < self._config.updates:
            with self._recorder.session.saving(update), _quiet_accelerate():
                self._accelerator.save_state(str(self._recorder.session.state(update)))


def _played(episodes: Sequence[Episode]) -> dict[str, float]:
    """How the episodes went."""
    return {
        "reward": sum(sum(episode.rewards) for episode in episodes) / len(episodes),
        "success": sum(episode.solved for episode in episodes) / len(episodes),
        "turns": sum(len(episode.steps) for episode in episodes) / len(episodes),
    }


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
