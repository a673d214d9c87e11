"""What every trainer does before it trains: open the checkpoint and its tokenizer, and name the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from blake3 import blake3

from evalkit.rendering import Renderer
from surgery.errors import Fault
from trainers.checkpoints import Saver, versions
from trainers.config import Training
from trainers.errors import ConfigError, RunError
from trainers.parent import Parent, open_parent
from trainers.plots import need_matplotlib
from trainers.recorder import Recorder
from trainers.report import Trainer as TrainerName
from trainers.session import PATIENCE, Session
from trainers.sharding import check_launched, on_cpu
from trainers.trackers import check_trackers


class Opened:
    """A configuration whose checkpoint, tokenizer, template and trackers are there.

    Raises CheckpointError, EngineError, TrainingError, ConfigError and RunError for what is not.
    """

    def __init__(self, trainer: TrainerName, config: Training) -> None:
        need_matplotlib()
        check_launched(config.device)
        check_trackers(config)
        self.trainer: TrainerName = trainer
        self.config = config
        state = PartialState(cpu=on_cpu(config.device), timeout=PATIENCE)
        self.processes: int = state.num_processes
        self.parent: Parent = open_parent(config.model, state)
        self.chat_template = _template(config)
        self.renderer = Renderer(self.parent.model, self.chat_template)
        out, model = Path(config.out).resolve(), self.parent.checkpoint.root.resolve()
        if out == model or model in out.parents:
            raise RunError(
                f"the run's directory `{config.out}` lies in the checkpoint `{config.model}`; choose another"
            )

    def session(self, resume: bool, overwrite: bool, data: Mapping[str, Any]) -> Session:
        """The run's directory; `data` tells what is learned from. Raises RunError."""
        identity = {
            "trainer": self.trainer,
            "config": self.config.model_dump(mode="json", by_alias=True),
            "parent": self.parent.digest,
            "chat_template": None if self.chat_template is None else blake3(self.chat_template.encode()).hexdigest(),
            "data": dict(data),
            "versions": versions(),
        }
        return Session(self.config, identity, resume, overwrite)

    def recorder(self, session: Session, data: Mapping[str, Any]) -> Recorder:
        """What the run writes."""
        saver = None
        if session.main:
            saver = Saver(session.directory, self.parent, self.trainer, self.config, data, self.chat_template)
        return Recorder(session, saver, self.config, self.trainer)


def _template(config: Training) -> str | None:
    if config.chat_template is None:
        return None
    try:
        return Path(config.chat_template).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError([Fault("chat_template", f"cannot read `{config.chat_template}`: {error}")]) from error
