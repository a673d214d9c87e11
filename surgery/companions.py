"""The files that go with the weights: config, generation config, tokenizer, chat template, processor, code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from surgery.checkpoint import Checkpoint
from surgery.config import with_dtype
from surgery.errors import CheckpointError

_TOKENIZER = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "additional_chat_templates/*",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
    "tekken.json",
)
_MODEL = ("*config.json", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*")
_NEVER = ("adapter_config.json",)
CONFIG = "config.json"
COMPANION_LIMIT = 200_000_000  # larger than any tokenizer; larger files are not companions but weights


@dataclass(frozen=True, slots=True)
class Companion:
    """A file of the output that is not weights: its name, and either where it is copied from or its content."""

    name: str
    path: Path | None = None
    content: bytes | None = None

    def read(self) -> bytes:
        """The content. Raises CheckpointError when the file cannot be read."""
        if self.content is not None:
            return self.content
        assert self.path is not None
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"cannot read `{self.path}`: {error.strerror}; the output needs it beside the weights"
            ) from error


def companions(
    start: Checkpoint,
    tokenizer: Checkpoint,
    torch_dtype: str | None,
    *,
    changed: bool = False,
    made: Mapping[str, bytes] = MappingProxyType({}),
    replaced: tuple[str, ...] = (),
) -> tuple[Companion, ...]:
    """What belongs beside the weights of an output that begins from `start`.

    Tokenizer files and chat templates come from `tokenizer`, everything else from `start`. With `torch_dtype`
    (`bfloat16`), the dtypes that the config names, nested configs included, become that one. `changed` says that
    the config in `start` is another one than the file's. `made` are files in place of those there, and of those whose
    names match a pattern in `replaced`.
    """
    found = {name: path for name, path in _files(start) if _matches(name, _MODEL)}
    found.update((name, path) for name, path in _files(tokenizer) if _matches(name, _TOKENIZER))
    result = []
    for name, path in sorted(found.items()):
        if name == CONFIG and (torch_dtype is not None or changed):
            config = start.config if torch_dtype is None else with_dtype(start.config, torch_dtype)
            content = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            result.append(Companion(name, content=content.encode()))
        else:
            result.append(Companion(name, path=path))
    kept = [each for each in result if each.name not in made and not _matches(each.name, replaced)]
    put = [Companion(name, content=content) for name, content in made.items()]
    return tuple(sorted([*kept, *put], key=lambda companion: companion.name))


def _files(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    if not checkpoint.is_directory:
        return
    for pattern in ("*", "additional_chat_templates/*"):
        for path in sorted(checkpoint.root.glob(pattern)):
            if path.is_file() and path.stat().st_size <= COMPANION_LIMIT:
                yield path.relative_to(checkpoint.root).as_posix(), path


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    if name in _NEVER or name.endswith((".bin", ".pt", ".pth", ".safetensors", ".gguf")):
        return False
    if patterns is _MODEL and _matches(name, _TOKENIZER):
        return False  # `tokenizer_config.json` is the tokenizer's
    return any(fnmatchcase(name, pattern) for pattern in patterns)
