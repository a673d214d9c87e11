"""Rows that a recipe gives to tokens, and padding of the vocabulary."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

import surgery
from surgery.errors import PlanError, RecipeError
from surgery.recipe import load
from tests.pairs import LLAMA_CONFIG, llama, read, write
from tests.tiny_tokenizers import save, unigram, words

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BASE = words(["?", "a", "b", "c", "d"], ["<pad>"])  # ids 0 ... 5
SFT = words(["?", "b", "a", "e"], ["<end>", "<pad>"])  # likewise
Tensors = dict[str, torch.Tensor]


def model(path: Path, tokenizer: Tokenizer, rows: int, seed: int, **more: Any) -> tuple[Path, Tensors]:
    """A model of one layer with so many rows; where it lies, and its tensors."""
    tied = bool(more.pop("tied", False))
    tensors = llama(seed=seed, layers=1, vocabulary=rows, tied=tied, dtype=torch.float32, **more)
    write(path, tensors, config={**LLAMA_CONFIG, "vocab_size": rows, "tie_word_embeddings": tied})
    return save(tokenizer, path), tensors


def recipe(output: Mapping[str, Any], **step: Any) -> dict[str, Any]:
    """What base has of sft's tokens, and sft's own, in equal parts."""
    made = {"op": "linear", "models": ["base", "sft"], **step}
    return {"name": "x", "models": ["base", "sft"], "steps": [made], "output": {"vocabulary": "start", **output}}


@pytest.fixture
def two(tmp_path: Path) -> tuple[list[Path], Tensors, Tensors]:
    """base with its six rows, sft with eight, two of them padding."""
    (base, B), (sft, S) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 8, 2)
    return [base, sft], B, S


def merged(B: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """The mean of sft's six rows and base's for the same tokens."""
    b, s = B.double(), S.double()
    return (torch.stack([b[0], b[2], b[1], s[3], s[4], b[5]]) + s[:6]) / 2


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("multiple", "rows"), [(1, 6), (2, 6), (4, 8), (64, 64)])
def test_padding(two: tuple[list[Path], Tensors, Tensors], tmp_path: Path, multiple: int, rows: int) -> None:
    """The next multiple above the tokens, not above the rows; each row beyond is the mean of the others."""
    models, B, S = two
    made = recipe({"pad_vocabulary_to": multiple})
    out = surgery.apply(made, models, tmp_path / "out").out
    for name in (EMBEDDING, HEAD):
        expected = merged(B[name], S[name])
        close(read(out)[name], torch.cat([expected, expected.mean(dim=0).expand(rows - 6, -1)]))
    assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
    assert (out / "tokenizer.json").read_bytes() == (models[1] / "tokenizer.json").read_bytes()
    told = surgery.plan(made, models).remarks[0]
    assert told.startswith(f"vocabulary: {rows} rows for ids up to 5")
    assert told.endswith("2 rows of padding in `sft` are left out")
    surgery.verify(out)


def test_padding_alone(tmp_path: Path) -> None:
    """Where no step reads them, the rows of `start` and their mean, for a tied model as well."""
    sft, S = model(tmp_path / "sft", SFT, 6, 2, tied=True)
    step = {"op": "truncate_rank", "rank": "all", "select": {"tensors": ["mlp"]}}
    made = {"name": "x", "models": ["sft"], "steps": [step], "output": {"vocabulary": "start", "pad_vocabulary_to": 8}}
    out = read(surgery.apply(made, [sft], tmp_path / "out").out)
    assert torch.equal(out[EMBEDDING][:6], S[EMBEDDING])
    close(out[EMBEDDING][6:], S[EMBEDDING].double().mean(dim=0).expand(2, -1))


@pytest.mark.parametrize("elements", [1, 5, 8, 13, 1 << 19])
def test_pieces_do_not_matter(
    two: tuple[list[Path], Tensors, Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    """Of means and of zeros either; they may begin and end within a row, or be shorter than one."""
    models, B, S = two
    monkeypatch.setattr(sys.modules["surgery.plan"], "PIECE_ELEMENTS", elements)
    tokens = {"a": {"from": 0, "force": True}, "?": {"from": 0, "force": True}}
    out = read(surgery.apply(recipe({"pad_vocabulary_to": 9, "tokens": tokens}), models, tmp_path / "out").out)
    expected = merged(B[HEAD], S[HEAD])
    expected[[0, 2]] = 0
    close(out[HEAD], torch.cat([expected, expected.mean(dim=0).expand(3, -1)]))


def test_rows_of_tokens(two: tuple[list[Path], Tensors, Tensors], tmp_path: Path) -> None:
    """For roles that lack the token, or with `force` for all; new tokens begin as they are given."""
    models, B, S = two
    tokens = {
        "e": {"from": "base", "token": "c"},  # sft has it
        "<end>": {"from": 0},  # likewise
        "b": {"from": "base", "token": 4, "force": True},
        "<new>": {"from": "sft", "token": "<end>"},  # nobody has it
        "c": {"from": "base"},  # only base has it
    }
    made = recipe({"tokens": tokens})
    out = surgery.apply(made, models, tmp_path / "out").out
    for name in (EMBEDDING, HEAD):
        b, s, expected = B[name].double(), S[name].double(), merged(B[name], S[name])
        expected[3], expected[4], expected[1] = (b[3] + s[3]) / 2, s[4] / 2, b[4]
        close(read(out)[name], torch.stack([*expected, s[4], b[3]]))
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert tokenizer.get_vocab()["<new>"] == 6
    assert tokenizer.encode("a <new> c").ids == [2, 6, 7]
    remarks = surgery.plan(made, models).remarks
    assert "vocabulary: adds the token `<new>`, with the id 6" in remarks
    (told,) = (remark for remark in remarks if remark.startswith("vocabulary: `base`"))
    assert "has 3 of the output's 3 tokens; for 5 tokens (`b`, `e`, `<end>`, ...) it counts as having the rows" in told
    assert told.endswith("that the recipe names")
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 8
    surgery.verify(out)


def test_added_tokens_follow_those_of_all_roles(two: tuple[list[Path], Tensors, Tensors], tmp_path: Path) -> None:
    """With `union`; and padding follows those."""
    models, B, _ = two
    output = {"vocabulary": "union", "tokens": {"<new>": {"from": "base", "token": "a"}}, "pad_vocabulary_to": 4}
    out = surgery.apply(recipe(output), models, tmp_path / "out").out
    ids = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    assert sorted(ids, key=lambda token: ids[token])[6:] == ["c", "d", "<new>"]
    found = read(out)[EMBEDDING]
    assert len(found) == 12
    assert torch.equal(found[6:9], B[EMBEDDING][[3, 4, 1]])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"vocabulary": None, "pad_vocabulary_to": 8}, "output: found `pad_vocabulary_to` without `vocabulary`; rows"),
        ({"vocabulary": None, "tokens": {"a": {"from": 0}}}, "output: found `tokens` without `vocabulary`; rows are"),
        ({"pad_vocabulary_to": 0}, "output.pad_vocabulary_to: found `0`; expected 1 or more"),
        ({"tokens": {"a": {"from": "bsae"}}}, "output.tokens.a.from: `bsae` is not among the recipe's models: `base`,"),
        ({"tokens": {"a": {"from": 1}}}, "output.tokens.a.from: found `1`; expected a role, or 0 for zeros"),
        (
            {"tokens": {"a": {}}},
            "output.tokens.a: `from` is missing; expected the role whose row it is, or 0 for zeros",
        ),
        (
            {"tokens": {"a": {"from": 0, "token": 1}}},
            "output.tokens.a: found `token` beside `from: 0`, which mean",
        ),
        ({"tokens": {"a": {"from": "base", "tokn": 1}}}, "output.tokens.a.tokn: unknown key `tokn`; did you mean `tok"),
        ({"tokens": {"a": {"from": "base", "token": -1}}}, "output.tokens.a.token: found `-1`; expected "),
    ],
)
def test_faults_of_recipes(output: dict[str, Any], message: str) -> None:
    """Each once, with its path."""
    with pytest.raises(RecipeError) as caught:
        load(recipe({key: value for key, value in output.items() if value is not None} | _without(output)))
    (fault,) = map(str, caught.value.faults)
    assert fault.startswith(f"recipe {message}"), fault


def _without(output: Mapping[str, Any]) -> dict[str, Any]:
    return {"vocabulary": None} if "vocabulary" in output else {}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            {"a": {"from": "base", "token": "<pda>"}},
            "`base` has no token `<pda>`, whose row `a` would get; did you",
        ),
        (
            {"<x>": {"from": "base"}},
            "`base` has no token `<x>`, whose row `<x>` would get; say of which to",
        ),
        ({"<x>": {"from": "base", "token": 6}}, "the embedding of `base` has 6 rows, and `6` is the row 6"),
    ],
)
def test_conflicts(two: tuple[list[Path], Tensors, Tensors], tokens: dict[str, Any], message: str) -> None:
    """Rows that are not there."""
    with pytest.raises(PlanError) as caught:
        surgery.plan(recipe({"tokens": tokens}), two[0])
    (fault,) = map(str, caught.value.faults)
    assert fault.startswith(f"recipe output: vocabulary: {message}"), fault


def test_a_tokenizer_without_room(tmp_path: Path) -> None:
    """A token with an id beyond the rows; tokens are added to any kind of tokenizer."""
    base, B = model(tmp_path / "base", unigram(["?", "a"], ["<s>"]), 3, 1)
    sft, _ = model(tmp_path / "sft", unigram(["?", "a"], ["<s>"]), 3, 2)
    tokens = {"<new>": {"from": "base", "token": "a"}}
    out = surgery.apply(recipe({"tokens": tokens}), [base, sft], tmp_path / "out").out
    assert torch.equal(read(out)[EMBEDDING][3], B[EMBEDDING][1])
    few, _ = model(tmp_path / "few", unigram(["?", "a"], ["<s>"]), 2, 3)
    with pytest.raises(PlanError, match="the embedding of `sft` has 2 rows, and its tokenizer has the token `<s>`"):
        surgery.plan(recipe({"pad_vocabulary_to": 8}), [base, few])
