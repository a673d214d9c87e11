"""Where results lie: one directory for each setting, in it one for each checkpoint.

- `OUT/digests.json`: the checkpoints seen, see `evalkit.digest`
- `OUT/TASK/answers-KEY/settings.json`: what the answers depend on; KEY is its digest
- `OUT/TASK/answers-KEY/report.json`: the last comparison made there
- `OUT/TASK/answers-KEY/MODEL-DIGEST/`: `samples.jsonl` and `summary.json` of a checkpoint
- and there `turns.jsonl`: wrong answers of episodes that went on, which a killed run takes up again
- `OUT/TASK/losses-KEY/MODEL-DIGEST/losses.jsonl`
- `OUT/TASK/requests-KEY/MODEL-DIGEST/requests.jsonl`, for lm-evaluation-harness
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.engines.base import Model
from evalkit.errors import ResultsError
from evalkit.journal import Journal
from evalkit.settings import Settings
from surgery.whole_file import as_json, write_whole

DIGESTS = "digests.json"
_FILE = {"answers": "samples.jsonl", "losses": "losses.jsonl", "requests": "requests.jsonl"}
_TURNS = "turns.jsonl"
_LABEL = 60  # characters of a model's name in a directory's name


class Store:
    """The results under one `Settings`; `directory` is theirs. Raises ResultsError."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self.settings = settings
        self.directory = out / label(settings.task) / f"{settings.kind}-{settings.key}"

    def open(self, model: Model) -> Journal:
        """The journal of a checkpoint, whatever name it had when the first line was written."""
        write_json(self.directory / "settings.json", self.settings.json())
        return Journal(self.place(model) / _FILE[self.settings.kind])

    def open_turns(self, model: Model) -> Journal:
        """The journal of the turns of a checkpoint's unfinished episodes."""
        return Journal(self.place(model) / _TURNS)

    def place(self, model: Model) -> Path:
        """The directory of a checkpoint: found by its digest, or else named for the model."""
        known = sorted(self.directory.glob(f"*-{model.digest}"))
        return known[0] if known else self.directory / f"{label(Path(model.name).name)}-{model.digest}"


def label(name: str) -> str:
    """A name as part of a path: letters, digits, `.`, `_` and `-` stay."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[-_LABEL:].strip("-.") or "model"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file at once, or not at all. Raises ResultsError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, as_json(content))
    except OSError as error:
        raise ResultsError(f"cannot write `{path}`: {error.strerror}; choose another `--out`, or make room") from error
