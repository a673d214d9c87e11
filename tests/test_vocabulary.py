"""What tokenizer files say about tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from surgery.checkpoint import open_checkpoint
from surgery.errors import CheckpointError, NotInstalledError
from surgery.vocabulary import Difference, Vocabulary, differences, read_vocabulary
from tests.pairs import llama, write
from tests.tiny_tokenizers import byte_level, save, sentencepiece, unigram, words


def vocabulary(tmp_path: Path, tokenizer: Tokenizer | dict[str, Any] | str) -> Vocabulary:
    """The vocabulary of a checkpoint with this tokenizer."""
    directory = tmp_path / str(len(list(tmp_path.iterdir())))
    write(directory, llama(layers=1))
    if isinstance(tokenizer, Tokenizer):
        save(tokenizer, directory)
    else:
        (directory / "tokenizer.json").write_text(tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer))
    return read_vocabulary(open_checkpoint(directory))


@pytest.mark.parametrize(
    ("tokenizer", "spelling"),
    [
        (words(["?", "a"], ["<s>"]), None),
        (byte_level(["a", "Ġ", "Ġa"], [("Ġ", "a")], ["<s>"]), "byte-level"),
        (sentencepiece(["a", "▁", "▁a"], [("▁", "a")], ["<s>"]), "sentencepiece"),
        (unigram(["?", "▁a"], ["<s>"]), "sentencepiece"),
    ],
    ids=["words", "byte-level", "sentencepiece", "unigram"],
)
def test_the_ids_are_those_of_tokenizers(tmp_path: Path, tokenizer: Tokenizer, spelling: str | None) -> None:
    """Of every kind of model, added tokens included; the spelling is that of its decoder."""
    found = vocabulary(tmp_path, tokenizer)
    assert found.ids == tokenizer.get_vocab(with_added_tokens=True)
    assert found.texts == {number: text for text, number in found.ids.items()}
    assert found.spelling == spelling
    assert found.added.keys() == {"<s>"}


def test_byte_level_entries_mean_what_their_decoder_says(tmp_path: Path) -> None:
    """All 256 letters, against tokenizers' decoder for the bytes of ASCII; each byte once."""
    letters = sorted(ByteLevel.alphabet())
    tokenizer = byte_level(letters)
    found = vocabulary(tmp_path, tokenizer)
    meanings = [found.meaning(letter) for letter in letters]
    assert sorted(meaning for meaning in meanings if meaning) == [bytes([i]) for i in range(256)]
    for letter, meaning in zip(letters, meanings, strict=True):
        if meaning and meaning[0] < 128:
            assert tokenizer.decode([found.ids[letter]]).encode() == meaning
    assert found.meaning("Ã©") == "é".encode()
    assert found.meaning("▁") is None


def test_what_two_entries_mean_is_matched_by_exact_text(tmp_path: Path) -> None:
    """An added token of two spaces beside the entry `ĠĠ`: it is not certain which is meant."""
    ours = vocabulary(tmp_path, byte_level(["ĠĠ", "a"], added=["  "]))
    theirs = vocabulary(tmp_path, sentencepiece(["▁▁", "a"], added=["  "]))
    assert ours.find("a", theirs) == 1
    assert ours.find("▁▁", theirs) is None
    assert ours.find("  ", theirs) == 2


def test_bytes_are_only_meant_with_byte_fallback(tmp_path: Path) -> None:
    """`<0x41>` of Unigram without it is these six characters."""
    assert vocabulary(tmp_path, sentencepiece(["<0x41>"])).meaning("<0x41>") == b"A"
    assert vocabulary(tmp_path, unigram(["?", "<0x41>"])).meaning("<0x41>") == b"<0x41>"


def test_differences_are_by_id(tmp_path: Path) -> None:
    """Other texts and missing ones, below the number of rows."""
    one, other = vocabulary(tmp_path, words(["a", "b", "c"])), vocabulary(tmp_path, words(["a", "c", "c2", "d", "e"]))
    assert differences(one, one) == []
    assert differences(one, other, 4) == [Difference(1, "b", "c"), Difference(2, "c", "c2"), Difference(3, None, "d")]
    assert differences(other, one)[-1] == Difference(4, "e", None)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"model": {}}', '{"model": {"vocab": {"a": "b"}}}', '{"model": {"vocab": {"a": -1}}}',
     '{"model": {"vocab": [1]}}', '{"model": {"vocab": {}}, "added_tokens": [{"content": "a"}]}',
     '{"model": {"vocab": {}}, "added_tokens": 1}'],
)  # fmt: skip
def test_broken_files_are_refused(tmp_path: Path, content: str) -> None:
    """Each with the file's name and what to do."""
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*; save the tokenizer again"):
        vocabulary(tmp_path, content)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """What was read is kept as long as size and time are the same."""
    directory = save(words(["a"]), write(tmp_path / "model", llama(layers=1)))
    assert read_vocabulary(open_checkpoint(directory)) is read_vocabulary(open_checkpoint(directory))
    save(words(["ab"]), directory)
    assert read_vocabulary(open_checkpoint(directory)).ids == {"ab": 0}


def test_other_files_need_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error says how to install it; a tokenizer that it cannot load is named."""
    directory = write(tmp_path / "model", llama(layers=1))
    (directory / "vocab.json").write_text("no JSON")
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        read_vocabulary(open_checkpoint(directory))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotInstalledError, match=r"pip install 'surgery\[eval\]'"):
        read_vocabulary(open_checkpoint(directory))
