"""Where the checkpoints are that stages name: those that exist, and stand-ins for those that are still to be made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.errors import CheckpointError, Fault
from surgery.hub import parse_hub_id
from surgery.recipe import load as load_recipe
from trainers.errors import ConfigError
from trainers.reproduce.options import parse
from trainers.reproduce.pipeline import TRAINERS, Pipeline, Stage, within
from trainers.reproduce.standins import initial_shape, make_standin

SEED = 0  # whose checkpoints are planned with; those of other seeds have the same shapes


class Places:
    """Finds a checkpoint for each word that names one; stand-ins are written into `directory`."""

    def __init__(self, pipeline: Pipeline, seed_directory: Path, directory: Path) -> None:
        self._pipeline = pipeline
        self._seed_directory = seed_directory
        self._directory = directory
        self._known: dict[str, Path] = {}

    def find(self, word: str) -> Path:
        """The checkpoint, or one of the same shapes. Raises ConfigError, CheckpointError, and what parsing raises."""
        if word not in self._known:
            self._known[word] = self._find(word)
        return self._known[word]

    def content(self, name: str) -> Any:
        """What a command's first argument names: a file of the pipeline, as its content, or else the name."""
        return self._pipeline.file(name, SEED) if name in self._pipeline.files else name

    def _find(self, word: str) -> Path:
        made = self._seed_directory / word
        if (made / "config.json").is_file():
            return made
        if word in self._pipeline.shapes:
            return self._standin(self._pipeline.shapes[word], f"shapes.{word}")
        stage = next((stage for stage in self._pipeline.stages if within(word, stage.makes)), None)
        if stage is not None:
            return self._made_by(stage)
        if not os.path.lexists(word):
            kind = "is on the hub, which a dry run does not ask" if parse_hub_id(word) else "is made by no stage"
            raise CheckpointError(f"`{word}` {kind}; give its configuration in `shapes`")
        return Path(word)

    def _standin(self, configuration: Mapping[str, Any], where: str) -> Path:
        return make_standin(self._directory / str(len(self._known)), configuration, where)

    def _made_by(self, stage: Stage) -> Path:
        """A checkpoint of the shapes of what the stage's command begins with."""
        parsed = parse(stage.words(SEED))
        values = parsed.values
        if parsed.command == "train init":
            return self._standin(initial_shape(self.content(values["config"]), values["settings"]), "architecture")
        if parsed.command.removeprefix("train ") in TRAINERS and values["model"]:
            return self.find(values["model"])
        if parsed.command == "apply":
            recipe = load_recipe(self.content(values["recipe"]), values["settings"])
            return self.find(values["models"][recipe.models.index(recipe.start)])
        if parsed.command == "sweep":
            return self.find(values["models"][-1])
        raise ConfigError([Fault(f"stage `{stage.name}`", f"`surgery {parsed.command}` makes no checkpoint")])
