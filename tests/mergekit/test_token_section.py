"""Files of mergekit that give tokens their rows and pad the vocabulary, run against mergekit's rules, written anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from surgery.recipe import load
from tests.mergekit.token_models import EMBEDDING, HEAD, TASK_ARITHMETIC, TOKENIZERS, write_models
from tests.pairs import read

NAMES = ("base", "sft", "math")
TOKENS = """\
  tokens:
    <end>: {source: MODELS/sft}
    d: {source: {kind: zero}}
    e: {source: {kind: model_token, model: MODELS/base, token: a}}
    a: {source: {kind: model_token, model: MODELS/sft, token_id: 3}, force: true}
    b: {source: MODELS/sft}
    <new>: {source: {kind: model_token, model: MODELS/math, token: <pad>}}
    <zero>: {source: {kind: zero}}
"""
Row = tuple[str, str] | None  # of this model for that token; None: zeros
GIVEN: dict[str, tuple[Row, bool]] = {
    "<end>": (("sft", "<end>"), False),
    "d": (None, False),
    "e": (("base", "a"), False),
    "a": (("sft", "d"), True),
    "b": (("sft", "b"), False),  # the base has it, and math lacks it
    "<new>": (("math", "<pad>"), False),
    "<zero>": (None, False),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models whose tokens differ; base has a row of padding."""
    return write_models(tmp_path_factory.mktemp("models"), NAMES, 1, base=1)


def expected(models: Path, name: str, tokens: list[str], given: Mapping[str, tuple[Row, bool]], rows: int) -> Tensor:
    """Each model's rows: its own, else as given, else the base's, else that of the one that has it; then padding."""
    ids = {model: TOKENIZERS[model].get_vocab(with_added_tokens=True) for model in NAMES}
    W = {model: read(models / model)[name].double() for model in ids}

    def row(model: str, token: str) -> Tensor:
        source, force = given.get(token, (("", ""), False))
        if token in ids[model] and not force:
            return W[model][ids[model][token]]
        if token in given:
            return torch.zeros_like(W[model][0]) if source is None else W[source[0]][ids[source[0]][source[1]]]
        lender = next(each for each in ids if token in ids[each])
        return W[lender][ids[lender][token]]

    seen = {}
    for model in ids:
        own = torch.stack([row(model, token) for token in tokens])
        seen[model] = torch.cat([own, own.mean(dim=0).expand(rows - len(own), -1)])
    return seen["base"] + 0.3 * (seen["sft"] - seen["base"]) + 0.5 * (seen["math"] - seen["base"])


@pytest.mark.parametrize(
    ("section", "tokens", "rows"),
    [
        ("tokenizer: {source: base, pad_to_multiple_of: 8}", "? a b c <pad>", 8),
        ("tokenizer: {source: base, pad_to_multiple_of: 5}", "? a b c <pad>", 5),
        ("tokenizer: {pad_to_multiple_of: 16}", "? a b c <pad> d <end> e", 16),
        (f"tokenizer:\n  source: union\n{TOKENS}", "? a b c <pad> d <end> e <new> <zero>", 10),
        (f"tokenizer:\n  pad_to_multiple_of: 4\n{TOKENS}", "? a b c <pad> d <end> e <new> <zero>", 12),
    ],
)
def test_rows(section: str, tokens: str, rows: int, run: Callable[[str], Path], models: Path) -> None:
    """Of tokens, given and not, and of padding, the mean of each model's rows; ids, added tokens and config follow."""
    out = run(f"{TASK_ARITHMETIC}{section}\n")
    found, given = read(out), GIVEN if "tokens" in section else {}
    ids = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab(with_added_tokens=True)
    assert sorted(ids, key=lambda token: ids[token]) == tokens.split()
    for name in (EMBEDDING, HEAD):
        wanted = expected(models, name, tokens.split(), given, rows)
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-6)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == rows


def test_the_recipe(tmp_path: Path) -> None:
    """Our own notation for it, and a note only of what differs: padding does not."""
    text = f"{TASK_ARITHMETIC}tokenizer:\n  source: base\n  pad_to_multiple_of: 64\n{TOKENS}"
    (tmp_path / "merge.yml").write_text(text)
    recipe = load(tmp_path / "merge.yml")
    wanted: dict[str, Any] = {
        "<end>": {"from": "sft"},
        "d": {"from": 0},
        "e": {"from": "base", "token": "a"},
        "a": {"from": "sft", "token": 3, "force": True},
        "b": {"from": "sft"},
        "<new>": {"from": "math", "token": "<pad>"},
        "<zero>": {"from": 0},
    }
    rows = recipe.output.tokens or {}
    assert {text: row.model_dump(by_alias=True, exclude_defaults=True) for text, row in rows.items()} == wanted
    assert (recipe.output.vocabulary, recipe.output.pad_vocabulary_to) == ("start", 64)
    assert not any("padding" in str(note) for note in recipe.notes)
