"""The tokens of a checkpoint: their texts and ids, as its tokenizer's files tell them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from surgery.checkpoint import Checkpoint
from surgery.errors import CheckpointError, NotInstalledError
from surgery.index import read_json

TOKENIZER_FILE = "tokenizer.json"
# Other forms of a tokenizer, which transformers turns into the one above.
_CONVERTED = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
_REMEDY = "save the tokenizer again: `AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)`"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")

Spelling = Literal["byte-level", "sentencepiece"]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a tokenizer.

    `ids` are by text, those of added tokens too; `added` has the settings of these, as `tokenizer.json` has them.
    `spelling` says how entries write bytes, where that is certain; with `byte_fallback`, `<0x0A>` is one.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    spelling: Spelling | None
    byte_fallback: bool

    @cached_property
    def texts(self) -> dict[int, str]:
        """The text of each id."""
        return {number: text for text, number in sorted(self.ids.items(), key=lambda item: item[1])}

    def find(self, text: str, owner: Vocabulary) -> int | None:
        """The id here of an entry of `owner`, or None.

        Entries are matched by their exact text. Where one of the two tokenizers is byte-level and the other of
        sentencepiece's kind, they write the same bytes differently, and are matched by bytes, as far as just one entry
        here means these.
        """
        if self.spelling == owner.spelling or None in (self.spelling, owner.spelling):
            return self.ids.get(text)
        meaning = owner.meaning(text)
        if meaning is None or meaning in self._ambiguous:
            return self.ids.get(text)
        return self._by_meaning.get(meaning)

    def meaning(self, text: str) -> bytes | None:
        """The bytes that an entry stands for; None where that is not certain."""
        if text in self.added:
            return text.encode()
        if self.spelling == "byte-level":
            known = _byte_of()
            return bytes(known[letter] for letter in text) if all(letter in known for letter in text) else None
        if self.spelling == "sentencepiece":
            byte = _FALLBACK.fullmatch(text) if self.byte_fallback else None
            if byte:
                return bytes.fromhex(byte[1])
            return text.replace(_SPACE, " ").encode()
        return None

    @cached_property
    def _meanings(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for text, number in self.ids.items():
            meaning = self.meaning(text)
            if meaning is not None:
                found.setdefault(meaning, []).append(number)
        return found

    @cached_property
    def _by_meaning(self) -> dict[bytes, int]:
        return {meaning: numbers[0] for meaning, numbers in self._meanings.items() if len(numbers) == 1}

    @cached_property
    def _ambiguous(self) -> set[bytes]:
        return self._meanings.keys() - self._by_meaning.keys()


@dataclass(frozen=True, slots=True)
class Difference:
    """An id, and the texts that it has in two vocabularies; None: no token."""

    id: int
    here: str | None
    there: str | None


def differences(one: Vocabulary, other: Vocabulary, rows: int | None = None) -> list[Difference]:
    """The ids (below `rows`) that do not have the same text in both."""
    if one is other:
        return []
    ours, theirs = one.texts, other.texts
    ids = sorted(number for number in ours.keys() | theirs.keys() if rows is None or number < rows)
    return [Difference(i, ours.get(i), theirs.get(i)) for i in ids if ours.get(i) != theirs.get(i)]


def has_tokenizer_file(checkpoint: Checkpoint) -> bool:
    """Whether there is a `tokenizer.json`, which is read without another library."""
    return checkpoint.is_directory and (checkpoint.root / TOKENIZER_FILE).is_file()


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError when there is no tokenizer beside the weights."""
    _found(checkpoint)


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """The vocabulary of a checkpoint. Where there is no `tokenizer.json`, transformers makes one of what there is.

    Raises CheckpointError when there is no tokenizer or it cannot be read, NotInstalledError without transformers.
    """
    path, size, mtime_ns = _found(checkpoint)
    return _read(path, size, mtime_ns)


def read_tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of a checkpoint's `tokenizer.json`, which has passed `read_vocabulary`; raises what that raises."""
    return _data(_found(checkpoint)[0])


def _found(checkpoint: Checkpoint) -> tuple[Path, int, int]:
    """`tokenizer.json`, or the directory of other files; with what tells whether it is still the same."""
    if not checkpoint.is_directory:
        raise CheckpointError(
            f"`{checkpoint.source}` is a single file, without a tokenizer; give the directory that holds both"
        )
    path = checkpoint.root / TOKENIZER_FILE
    if not path.is_file():
        path = checkpoint.root
        if not any(next(path.glob(pattern), None) for pattern in _CONVERTED):
            raise CheckpointError(
                f"`{checkpoint.source}` has no tokenizer: no `{TOKENIZER_FILE}`, nor any of "
                f"{', '.join(f'`{name}`' for name in _CONVERTED)}; put its tokenizer's files beside its weights"
            )
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)  # a sweep plans hundreds of variants of the same models
def _read(path: Path, size: int, mtime_ns: int) -> Vocabulary:  # noqa: ARG001 - a key of the cache
    return _vocabulary(_data(path), str(path))


def _data(path: Path) -> dict[str, Any]:
    return _converted(path) if path.is_dir() else read_json(path, _REMEDY)


def _converted(root: Path) -> dict[str, Any]:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise NotInstalledError(
            f"`{root}` has no `{TOKENIZER_FILE}`; transformers makes one of its other files: "
            f"`pip install 'surgery[eval]'`",
            name="transformers",
        ) from error
    try:
        text = AutoTokenizer.from_pretrained(root, local_files_only=True).backend_tokenizer.to_str()
    except Exception as error:  # whatever a tokenizer's own code raises
        raise CheckpointError(
            f"the tokenizer in `{root}` cannot be loaded by transformers: {error}; {_REMEDY}"
        ) from error
    made: dict[str, Any] = json.loads(text)
    return made


def _vocabulary(data: Mapping[str, Any], where: str) -> Vocabulary:
    model, added = data.get("model"), data.get("added_tokens") or []
    entries = model.get("vocab") if isinstance(model, dict) else None
    try:
        if isinstance(entries, dict):
            ids = dict(entries)
        elif isinstance(entries, list):  # Unigram: an entry's id is its place
            ids = {text: number for number, (text, _) in enumerate(entries)}
        else:
            raise ValueError("it has no `vocab`")
        settings = {str(token["content"]): token for token in added}
        ids.update((text, token["id"]) for text, token in settings.items())
        if not all(isinstance(text, str) and type(i) is int and i >= 0 for text, i in ids.items()):
            raise ValueError("its `vocab` does not map texts to ids")
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the tokenizer in `{where}` has another form than expected ({error}); {_REMEDY}"
        ) from error
    return Vocabulary(ids, settings, _spelling(data), bool(data["model"].get("byte_fallback")))


def _spelling(data: Mapping[str, Any]) -> Spelling | None:
    """How entries are written, as the decoder says, which turns them into text."""
    parts = list(_parts(data.get("decoder")))
    if any(part.get("type") == "ByteLevel" for part in parts):
        return "byte-level" if data["model"].get("type") == "BPE" else None
    for part in parts:
        spaces = (
            part.get("type") == "Replace" and part.get("pattern") == {"String": _SPACE} and part.get("content") == " "
        )
        if spaces or (part.get("type") == "Metaspace" and part.get("replacement", _SPACE) == _SPACE):
            return "sentencepiece" if data["model"].get("type") in ("BPE", "Unigram") else None
    return None


def _parts(decoder: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(decoder, dict):
        yield decoder
        for part in decoder.get("decoders", ()):
            yield from _parts(part)


@lru_cache(maxsize=1)
def _byte_of() -> Mapping[str, int]:
    """The byte that each letter of a byte-level entry stands for.

    Bytes that print in Latin-1 are written as they are, the others in order from U+0100 on (GPT-2's `bytes_to_unicode`,
    Radford et al. 2019).
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {**{chr(byte): byte for byte in plain}, **{chr(0x100 + i): byte for i, byte in enumerate(others)}}
