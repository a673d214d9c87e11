"""Everything that answers depend on besides the checkpoint: what results are kept under."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from blake3 import blake3

KEY = 12  # hexadecimal digits of a key: 48 bits tell the settings of one directory apart

Kind = Literal["answers", "losses", "requests"]


@dataclass(frozen=True)
class Settings:
    """The settings of an evaluation; `n` and the splits are not among them, since more examples begin with the same.

    Only `answers` have `attempts` and `sampling`: losses of references need none, and of the `requests` that
    lm-evaluation-harness makes each says its own.
    """

    kind: Kind
    task: str
    task_version: int
    parameters: Mapping[str, Any]
    part: str
    seed: int
    engine: str
    engine_options: Mapping[str, Any]
    versions: Mapping[str, str]
    chat: bool
    prompt: str | None = None
    chat_template: str | None = None
    attempts: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))

    @property
    def key(self) -> str:
        """A digest of all of it."""
        text = json.dumps(self.json(), sort_keys=True, ensure_ascii=True)
        return blake3(text.encode()).hexdigest()[:KEY]
