"""Tokenizers of a few entries, of the kinds that models have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers


def words(entries: Sequence[str], added: Sequence[str | AddedToken] = ()) -> Tokenizer:
    """Entries are words (or single letters) that spaces divide, id by place; `added` come after them."""
    made = Tokenizer(models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token=entries[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _with(made, added)


def byte_level(entries: Sequence[str], merges: Sequence[tuple[str, str]] = (), added: Sequence[str] = ()) -> Tokenizer:
    """BPE over bytes, which are written as GPT-2 does: a space is `Ġ`."""
    made = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _with(made, added)


def sentencepiece(
    entries: Sequence[str], merges: Sequence[tuple[str, str]] = (), added: Sequence[str] = ()
) -> Tokenizer:
    """BPE over characters as Llama 2 has it: a space is `▁`, an unknown byte `<0x0A>`."""
    model = models.BPE({entry: i for i, entry in enumerate(entries)}, list(merges), byte_fallback=True, fuse_unk=True)
    made = Tokenizer(model)
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with(made, added)


def unigram(entries: Sequence[str], added: Sequence[str] = ()) -> Tokenizer:
    """Entries with scores, the first for what is unknown."""
    made = Tokenizer(models.Unigram([(entry, -float(i)) for i, entry in enumerate(entries)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return _with(made, added)


def save(tokenizer: Tokenizer, directory: Path) -> Path:
    """Write `tokenizer.json` beside a model's weights; returns the directory."""
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def _with(made: Tokenizer, added: Sequence[str | AddedToken]) -> Tokenizer:
    for each in added:
        if isinstance(each, str):
            made.add_special_tokens([each])
        else:
            made.add_tokens([each])
    return made
