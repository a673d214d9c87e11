"""The chat template of an output: that of a role, the most common one, or a text of the recipe's own.

Read and written as transformers 5 does: `chat_template.jinja` counts for more than what `tokenizer_config.json` says.
Readers of the latter alone get the same template.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.errors import CheckpointError
from surgery.index import read_json
from surgery.output_section import MOST_COMMON

FILE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"
_OLDER = "chat_template.json"  # of processors
REPLACED = ("chat_template*", "additional_chat_templates/*")  # files that would go on saying something else

_KEY = "chat_template"


def read_chat_template(checkpoint: Checkpoint) -> str | None:
    """The chat template of a checkpoint, None where it has none. Raises CheckpointError when files cannot be read."""
    if not checkpoint.is_directory:
        return None
    path = checkpoint.root / FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"`{path}` cannot be read as text: {error}") from error
    for name in (SETTINGS, _OLDER):
        path = checkpoint.root / name
        found = _default(read_json(path).get(_KEY)) if path.is_file() else None
        if found is not None:
            return found
    return None


def _default(value: object) -> str | None:
    """The template itself, or of several that have names the one called `default`."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    elif isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None


def chosen_template(asked: str, inputs: Mapping[str, Checkpoint]) -> str:
    """The template that `output.chat_template` asks for.

    Of the most common ones the first in the order of the roles; surrounding space does not tell templates apart.
    Raises ValueError where no role, or not that role, has one.
    """
    if asked in inputs:
        found = read_chat_template(inputs[asked])
        if found is None:
            raise ValueError(
                f"`{asked}` ({inputs[asked].source}) has no chat template; name another role, or write one"
            )
        return found
    if asked != MOST_COMMON:
        return asked
    templates = [text for each in inputs.values() if (text := read_chat_template(each))]
    if not templates:
        raise ValueError("no role has a chat template; leave it out, or write one in Jinja")
    most = Counter(text.strip() for text in templates).most_common(1)[0][0]
    return next(text for text in templates if text.strip() == most)


def template_files(text: str, lender: Checkpoint, made: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that say so in place of those of the tokenizer's checkpoint; of these some are `made` already."""
    files = {FILE: text.encode()}
    path = lender.root / SETTINGS
    settings: dict[str, Any] = {}
    if SETTINGS in made:
        settings = json.loads(made[SETTINGS])
    elif path.is_file():
        settings = read_json(path)
    if settings.get(_KEY) is not None:
        files[SETTINGS] = (json.dumps({**settings, _KEY: text}, indent=2, ensure_ascii=False) + "\n").encode()
    return files
