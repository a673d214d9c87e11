"""One of several processes that learn from the same episodes: `... MODEL OUT`. A script of test_ppo_learner."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from tests.trainers.test_ppo_learner import learner, made_up_episodes, weights
from trainers.progress import Silence


def main(model: Path, out: Path) -> None:
    """Learn for one update; the main process writes weights and figures."""
    made = learner(model, micro_batch_size=2, mini_batches=2)
    assert made._accelerator.num_processes == 2
    figures = made.learn(made.judge(made_up_episodes()), 1, Silence())
    if made._accelerator.is_main_process:
        save_file(
            {name.removeprefix("module."): tensor for name, tensor in weights(made).items()},
            out / "weights.safetensors",
        )
        (out / "figures.json").write_text(json.dumps(figures))
    made._accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # as the command line leaves: gloo's threads may wait for a process that has ended
