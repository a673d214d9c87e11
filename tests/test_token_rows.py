"""Rows of embeddings and heads are matched by the texts of their tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

import surgery
from surgery.errors import PlanError
from tests.pairs import LLAMA_CONFIG, llama, read, write
from tests.tiny_tokenizers import byte_level, save, sentencepiece, unigram, words

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, torch.Tensor]


def config(rows: int, **more: Any) -> dict[str, Any]:
    """The config of a Llama with so many rows."""
    return {**LLAMA_CONFIG, "vocab_size": rows, **more}


def recipe(*steps: Mapping[str, Any], models: Sequence[str] = ("base", "sft"), **keys: Any) -> dict[str, Any]:
    """A recipe over base and sft whose tokens are matched as `vocabulary` says."""
    output = {"vocabulary": keys.pop("vocabulary", "start"), **keys.pop("output", {})}
    output = {key: value for key, value in output.items() if value is not None}
    return {"name": "test", "models": list(models), "steps": list(steps), "output": output, **keys}


def linear(models: Sequence[str] = ("base", "sft"), **keys: Any) -> dict[str, Any]:
    """A mean of two models."""
    return {"op": "linear", "models": list(models), **keys}


def model(
    directory: Path, tokenizer: Tokenizer | None, rows: int, seed: int, tied: bool = False, **more: Any
) -> tuple[Path, Tensors]:
    """A model of one layer with so many rows, with a tokenizer; where it lies, and its tensors."""
    dtype = more.pop("dtype", torch.bfloat16)
    tensors = llama(seed=seed, layers=1, vocabulary=rows, tied=tied, dtype=dtype)
    path = write(directory, tensors, config=config(rows, tie_word_embeddings=tied, **more))
    return (path if tokenizer is None else save(tokenizer, path)), tensors


def mean(*rows: torch.Tensor) -> torch.Tensor:
    """The mean in float32, as bfloat16."""
    return (sum(row.float() for row in rows[1:]) + rows[0].float()).div(len(rows)).bfloat16()


def faults(made: Mapping[str, Any], *models: Path) -> list[str]:
    """What is wrong with a plan."""
    with pytest.raises(PlanError) as caught:
        surgery.plan(made, models)
    return [str(fault) for fault in caught.value.faults]


BASE = words(["?", "a", "b", "c", "d"], ["<pad>"])  # ids 0 ... 5
SFT = words(["?", "b", "a", "e"], ["<end>", "<pad>"])  # likewise


# --- the tokens of start -----------------------------------------------------------------------------------------


def test_rows_of_start_are_merged_with_those_of_the_same_text(tmp_path: Path) -> None:
    """A token that base lacks stays what start has; what start lacks is left out; padding rows stay."""
    (base, B), (sft, S) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 8, 2)
    out = read(surgery.apply(recipe(linear()), [base, sft], tmp_path / "out").out)
    for name in (EMBEDDING, HEAD):
        b, s = B[name], S[name]
        expected = [mean(b[0], s[0]), mean(b[2], s[1]), mean(b[1], s[2]), s[3], s[4], mean(b[5], s[5]), s[6], s[7]]
        assert torch.equal(out[name], torch.stack(expected))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(out[name], mean(B[name], S[name]))
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (sft / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_text()) == config(8, tie_word_embeddings=False)
    surgery.verify(tmp_path / "out")
    (remark,) = surgery.plan(recipe(linear()), [base, sft]).remarks
    assert remark == (
        "vocabulary: `base` has 4 of the output's 6 tokens; it lacks 2 tokens (`e`, `<end>`), for which it counts as "
        "having the output's own rows; the output lacks 2 tokens (`c`, `d`), which are left out"
    )


def test_a_task_vector_of_a_token_that_a_role_lacks_is_nothing(tmp_path: Path) -> None:
    """With `start` the base: what the SFT model lacks stays, what it has moves."""
    (base, B), (sft, S) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    step = linear(["result", "sft"], weights=[1, 1], normalize=False)
    minus = linear(["result", "base"], weights=[1, -1], normalize=False)
    made = recipe(step, minus, start="base", output={"dtype": "float32"})
    out = read(surgery.apply(made, [base, sft], tmp_path / "out").out)[EMBEDDING]
    expected = B[EMBEDDING].float()
    for ours, theirs in ((0, 0), (1, 2), (2, 1), (5, 5)):
        expected[ours] += S[EMBEDDING].float()[theirs] - expected[ours]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    assert torch.equal(out[3:5], B[EMBEDDING].float()[3:5])


def test_a_copy_takes_the_rows_of_the_same_tokens(tmp_path: Path) -> None:
    """`reset_layers` of the embedding: base's rows in the order of start, where base has the token."""
    (base, B), (sft, S) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    step = {"op": "reset_layers", "from": "base", "select": {"tensors": ["embedding"]}}
    made = surgery.plan(recipe(step), [base, sft])
    assert {tensor.slot.name: tensor.action for tensor in made.tensors}[EMBEDDING] == "gather"
    out = read(surgery.apply(recipe(step), [base, sft], tmp_path / "out").out)
    b, s = B[EMBEDDING], S[EMBEDDING]
    assert torch.equal(out[EMBEDDING], torch.stack([b[0], b[2], b[1], s[3], s[4], b[5]]))
    assert torch.equal(out[HEAD], S[HEAD])


@pytest.mark.parametrize("elements", [1, 5, 8, 13, 1 << 19])
def test_pieces_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Pieces may begin and end within rows; elementwise, by rows and by matrices."""
    tokens = [f"t{i}" for i in range(30)]
    shuffled = [tokens[i] for i in torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()][:25]
    (base, B), (sft, S) = (
        model(tmp_path / "base", words(shuffled), 25, 1),
        model(tmp_path / "sft", words(tokens), 30, 2),
    )
    monkeypatch.setattr(sys.modules["surgery.plan"], "PIECE_ELEMENTS", elements)
    out = read(surgery.apply(recipe(linear()), [base, sft], tmp_path / "out").out)
    seen = torch.stack([B[HEAD][shuffled.index(t)] if t in shuffled else S[HEAD][i] for i, t in enumerate(tokens)])
    assert torch.equal(out[HEAD], mean(seen, S[HEAD]))
    select = {"tensors": ["embedding"]}
    slerp = {"op": "slerp", "models": ["base", "sft"], "t": 0, "select": select}
    swap = {"op": "restore_directions", "from": "base", "head": "all", "singular_values": "from", "select": select}
    seen = torch.stack(
        [B[EMBEDDING][shuffled.index(t)] if t in shuffled else S[EMBEDDING][i] for i, t in enumerate(tokens)]
    )
    for number, step in enumerate((slerp, swap)):
        made = read(surgery.apply(recipe(step), [base, sft], tmp_path / f"out{number}").out)
        torch.testing.assert_close(made[EMBEDDING].float(), seen.float(), rtol=0.01, atol=0.01)


def test_the_same_tokens_are_merged_as_without(tmp_path: Path) -> None:
    """The same tokenizers, no padding: byte for byte what the merge by position makes."""
    (base, _), (sft, _) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", BASE, 6, 2)
    one = read(surgery.apply(recipe(linear()), [base, sft], tmp_path / "one").out)
    other = read(surgery.apply(recipe(linear(), vocabulary=None), [base, sft], tmp_path / "other").out)
    third = read(surgery.apply(recipe(linear(), vocabulary="union"), [base, sft], tmp_path / "third").out)
    assert all(torch.equal(one[name], other[name]) and torch.equal(third[name], one[name]) for name in one)


# --- the tokens of all roles -------------------------------------------------------------------------------------


def test_the_union_has_the_tokens_of_all_roles(tmp_path: Path) -> None:
    """start's in their order, then base's by id; a row that start lacks begins as base's; transformers reads both."""
    transformers = pytest.importorskip("transformers")
    extra = AddedToken("<end>", special=False, lstrip=True)
    base_tokens = words(["?", "a", "b", "c", "d"], ["<pad>", extra])
    sft_tokens = words(["?", "b", "a"], ["<pad>"])
    (base, B), (sft, S) = model(tmp_path / "base", base_tokens, 7, 1), model(tmp_path / "sft", sft_tokens, 4, 2)
    made = recipe(linear(select={"tensors": ["embedding"]}), vocabulary="union")
    plan = surgery.plan(made, [base, sft])
    assert plan.remarks == (
        "vocabulary: adds 3 tokens (`c`, `d`, `<end>`) of `base`",
        "vocabulary: `base` has 7 of the output's 7 tokens",
    )
    assert {tensor.slot.name: tensor.action for tensor in plan.tensors}[HEAD] == "gather"
    out = surgery.apply(made, [base, sft], tmp_path / "out").out
    found = read(out)
    b, s = B[EMBEDDING], S[EMBEDDING]
    merged = [mean(b[0], s[0]), mean(b[2], s[1]), mean(b[1], s[2]), mean(b[5], s[3])]
    assert torch.equal(found[EMBEDDING], torch.stack([*merged, b[3], b[4], b[6]]))
    assert torch.equal(found[HEAD], torch.cat([S[HEAD], B[HEAD][[3, 4, 6]]]))
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 7
    surgery.verify(out)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(out / "tokenizer.json"))
    assert tokenizer("b a c d <end> <pad> x").input_ids == [1, 2, 4, 5, 6, 3, 0]
    assert tokenizer.decode([1, 4, 6]) == "b c <end>"
    added = {t["content"]: t for t in json.loads((out / "tokenizer.json").read_text())["added_tokens"]}
    assert (added["<end>"]["id"], added["<end>"]["lstrip"], added["<end>"]["special"]) == (6, True, False)
