"""A run of group relative policy optimisation, from its configuration to its report.

Episodes have one turn; everything else about them is as with PPO: problems, grades, engines, measurements.
"""

from __future__ import annotations

from trainers.batches import accumulation
from trainers.config import GrpoConfig
from trainers.opening import Opened
from trainers.parent import load_network
from trainers.player import Player
from trainers.progress import Progress
from trainers.report import Report


def run_grpo(config: GrpoConfig, resume: bool, overwrite: bool, progress: Progress) -> Report:
    """Train as the configuration says. Whatever can be found wrong before the first episode is."""
    opened = Opened("grpo", config)
    answers = config.prompts * config.generations
    found = f"{config.prompts} with `generations` {config.generations}, {answers} answers in all,"
    batch = accumulation("prompts", found, answers, config.micro_batch_size, opened.processes)
    player = Player(config, opened, config.prompts, repeats=config.generations, attempts=1)
    with opened.session(resume, overwrite, player.about) as session:
        if session.finished:
            return session.report()
        from trainers.grpo import optimise

        recorder = opened.recorder(session, player.about)
        network = load_network(opened.parent, config)
        optimise(config, batch, network, opened.renderer.tokenizer, player, recorder, progress)
        return recorder.finish(config.updates, task=config.data.task)
