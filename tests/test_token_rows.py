"""Rows of embeddings and heads are matched by the texts of their tokens."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

import surgery
from surgery.errors import PlanError
from tests.commands import Run
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
    steps: list[dict[str, Any]] = [slerp, swap]
    for number, step in enumerate(steps):
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


def test_the_padding_of_start_takes_new_tokens_first(tmp_path: Path) -> None:
    """Ids follow those of start, so that its padding is used up; what is left of it stays; the config too."""
    (base, B), (sft, S) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 10, 2)
    out = surgery.apply(recipe(linear(), vocabulary="union"), [base, sft], tmp_path / "out").out
    b, s = B[HEAD], S[HEAD]
    both = [mean(b[0], s[0]), mean(b[2], s[1]), mean(b[1], s[2]), s[3], s[4], mean(b[5], s[5])]
    assert torch.equal(read(out)[HEAD], torch.stack([*both, b[3], b[4], s[8], s[9]]))
    assert (out / "config.json").read_bytes() == (sft / "config.json").read_bytes()
    assert Tokenizer.from_file(str(out / "tokenizer.json")).token_to_id("d") == 7


def test_a_token_that_start_lacks_begins_as_the_first_role_that_has_it(tmp_path: Path) -> None:
    """Of three roles; the third, which lacks it, counts as having that row; tokens are by role and id."""
    one, two, three = (
        words(["?", "a"], ["<x>"]),
        words(["?", "z", "a", "y"], ["<x>"]),
        words(["?", "y"], ["<w>", "<x>"]),
    )
    (a, A), (b, B), (c, C) = (
        model(tmp_path / name, tokens, tokens.get_vocab_size(), seed)
        for seed, (name, tokens) in enumerate([("a", one), ("b", two), ("c", three)])
    )
    made = recipe(linear(["a", "b", "c"]), models=["a", "b", "c"], start="a", vocabulary="union")
    out = read(surgery.apply(made, [a, b, c], tmp_path / "out").out)
    x, y, z = A[EMBEDDING], B[EMBEDDING], C[EMBEDDING]
    expected = [
        mean(x[0], y[0], z[0]),  # ?
        mean(x[1], y[2], x[1]),  # a, which c lacks
        mean(x[2], y[4], z[3]),  # <x>
        mean(y[1], y[1], y[1]),  # z, which only b has
        mean(y[3], y[3], z[1]),  # y, which a lacks
        mean(z[2], z[2], z[2]),  # <w>, which only c has
    ]
    torch.testing.assert_close(out[EMBEDDING].float(), torch.stack(expected).float(), rtol=0.01, atol=0)
    assert torch.equal(out[EMBEDDING][[0, 2, 4]], torch.stack(expected)[[0, 2, 4]])
    assert surgery.plan(made, [a, b, c]).remarks[:2] == (
        "vocabulary: adds 2 tokens (`z`, `y`) of `b`",
        "vocabulary: adds 1 token (`<w>`) of `c`",
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("policy", ["start", "union"])
def test_against_a_merge_by_dictionaries(tmp_path: Path, seed: int, policy: str) -> None:
    """Random vocabularies and padding of three roles: a sum of rows that plain dictionaries from text to row name."""
    chosen = random.Random(seed)
    paths: list[Path] = []
    ids: list[dict[str, int]] = []
    rows: list[torch.Tensor] = []
    for role in range(3):
        texts = ["?", *chosen.sample([f"w{i}" for i in range(12)], chosen.randint(1, 9))]
        special = chosen.sample([f"<{i}>" for i in range(4)], chosen.randint(0, 3))
        number = len(texts) + len(special) + chosen.randint(0, 2)
        path, tensors = model(tmp_path / str(role), words(texts, special), number, seed=role, dtype=torch.float32)
        paths.append(path)
        ids.append({text: i for i, text in enumerate([*texts, *special])})
        rows.append(tensors[EMBEDDING])
    made = recipe(
        linear(["a", "b", "c"], weights=[1, 2, 4], normalize=False),
        models=["a", "b", "c"],
        start="a",
        vocabulary=policy,
    )
    out = surgery.apply(made, paths, tmp_path / "out").out

    tokens = list(ids[0])
    if policy == "union":
        tokens = list(dict.fromkeys(text for own in ids for text in own))
    expected = []
    for i in range(max(len(tokens), len(rows[0]))):
        text = tokens[i] if i < len(tokens) else None
        having = [r for r in range(3) if text in ids[r]]
        begins = rows[having[0]][ids[having[0]][text]] if text else rows[0][i]
        seen = [rows[r][ids[r][text]] if text and r in having else begins for r in range(3)]
        expected.append(seen[0] + 2 * seen[1] + 4 * seen[2])
    torch.testing.assert_close(read(out)[EMBEDDING], torch.stack(expected), rtol=1e-6, atol=1e-6)
    found = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab(with_added_tokens=True)
    assert found == {text: i for i, text in enumerate(tokens)}


def test_tied_heads_are_merged_once(tmp_path: Path) -> None:
    """Without a head of its own in the files, and with a copy stored in start."""
    (base, B), (sft, S) = model(tmp_path / "base", BASE, 6, 1, tied=True), model(tmp_path / "sft", SFT, 6, 2, tied=True)
    made = recipe(linear(), vocabulary="union")
    out = read(surgery.apply(made, [base, sft], tmp_path / "out").out)
    assert HEAD not in out
    assert out[EMBEDDING].shape == (8, 8)
    b, s = B[EMBEDDING], S[EMBEDDING]
    assert torch.equal(out[EMBEDDING][[1, 6, 7]], torch.stack([mean(b[2], s[1]), b[3], b[4]]))
    config_ = json.loads((sft / "config.json").read_text())
    stored = save(SFT, write(tmp_path / "stored", {**S, HEAD: S[EMBEDDING].clone()}, config=config_))
    twice = read(surgery.apply(made, [base, stored], tmp_path / "twice").out)
    assert torch.equal(twice[HEAD], out[EMBEDDING])
    assert torch.equal(twice[EMBEDDING], out[EMBEDDING])


def test_other_dtypes_and_the_config_of_a_language_model(tmp_path: Path) -> None:
    """Rows of float32 and bfloat16 in one tensor, once the output's dtype is named; a nested `vocab_size`."""
    (base, B), (sft, S) = (
        model(tmp_path / "base", BASE, 6, 1, dtype=torch.float64),
        model(tmp_path / "sft", SFT, 6, 2, text_config={"vocab_size": 6, "x": 6}),
    )
    made = recipe(linear(), vocabulary="union", output={"dtype": "float32"})
    out = surgery.apply(made, [base, sft], tmp_path / "out").out
    b, s = B[EMBEDDING].double(), S[EMBEDDING].double()
    rows = [(b[0] + s[0]) / 2, (b[2] + s[1]) / 2, (b[1] + s[2]) / 2, s[3], s[4], (b[5] + s[5]) / 2, b[3], b[4]]
    assert torch.equal(read(out)[EMBEDDING], torch.stack(rows).float())
    found = json.loads((out / "config.json").read_text())
    assert (found["vocab_size"], found["text_config"]["vocab_size"], found["text_config"]["x"]) == (8, 8, 6)


def test_slices_and_shards(tmp_path: Path) -> None:
    """Layers from one model, tokens of both; an index counts what is stored."""
    b, s = llama(seed=1, layers=2, vocabulary=6), llama(seed=2, layers=2, vocabulary=6)
    base = save(BASE, write(tmp_path / "base", b, config=config(6, num_hidden_layers=2)))
    sft = save(SFT, write(tmp_path / "sft", s, shards=3, config=config(6, num_hidden_layers=2)))
    made = recipe(start="sft", slices=[{"base": "0"}, {"sft": "1"}], vocabulary="union")
    out = surgery.apply(made, [base, sft], tmp_path / "out").out
    assert torch.equal(read(out)[EMBEDDING], torch.cat([s[EMBEDDING], b[EMBEDDING][3:5]]))
    found = json.loads((out / "config.json").read_text())
    assert (found["vocab_size"], found["num_hidden_layers"]) == (8, 2)
    surgery.verify(out)


def test_several_variants_in_one_pass(tmp_path: Path) -> None:
    """Outputs with rows by position, of start and of all: what each is alone."""
    (base, _), (sft, _) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    recipes = [recipe(linear(weights=[w, 1]), vocabulary=v) for v in ("start", "union") for w in (1, 2)]
    variants = [surgery.Variant(made, tmp_path / f"all{i}") for i, made in enumerate(recipes)]
    surgery.apply_all(variants, {"base": base, "sft": sft})
    for i, made in enumerate(recipes):
        alone = read(surgery.apply(made, [base, sft], tmp_path / f"alone{i}").out)
        together = read(tmp_path / f"all{i}")
        assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_the_plans_hash_knows_the_rows(tmp_path: Path) -> None:
    """Another order of the tokens, with all headers the same, is another plan; nothing else is."""
    (base, _), (sft, _) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    first = surgery.plan(recipe(linear()), [base, sft])
    assert surgery.plan(recipe(linear()), [base, sft]).hash == first.hash
    save(words(["?", "b", "a", "c", "d"], ["<pad>"]), base)
    assert surgery.plan(recipe(linear()), [base, sft]).hash != first.hash


def test_the_plans_hash_knows_the_tokenizer_that_is_made(tmp_path: Path) -> None:
    """The same rows, and an added token that is found in texts otherwise, is another plan."""
    (base, _), (sft, _) = model(tmp_path / "base", BASE, 7, 1), model(tmp_path / "sft", SFT, 6, 2)
    hashes = set()
    for lstrip in (False, True, True):
        save(words(["?", "a", "b", "c", "d"], ["<pad>", AddedToken("<x>", lstrip=lstrip)]), base)
        hashes.add(surgery.plan(recipe(linear(), vocabulary="union"), [base, sft]).hash)
    assert len(hashes) == 2


# --- the tokenizer of the union ----------------------------------------------------------------------------------


def test_bpe_splits_texts_as_before_and_knows_the_others_tokens(tmp_path: Path) -> None:
    """A byte-level tokenizer with entries and special tokens of another; loaded with the model by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

    ours = byte_level(["a", "b", "Ġ", "ab", "Ġa"], [("a", "b"), ("Ġ", "a")], ["<s>"])
    theirs = byte_level(["b", "a", "Ġ", "ba", "c"], [("b", "a")], ["<s>", "<|end|>"])
    paths = []
    for name, tokens in (("base", theirs), ("sft", ours)):
        rows = tokens.get_vocab_size()
        made = LlamaConfig(
            vocab_size=rows, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=False,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(made)
        model.save_pretrained(tmp_path / name)
        PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>").save_pretrained(tmp_path / name)
        paths.append(tmp_path / name)
    out = surgery.apply(recipe(linear(), vocabulary="union"), paths, tmp_path / "out").out
    tokenizer, before = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(tmp_path / "sft")
    for text in ("ab a", "<s>ba ab", "aab b"):
        assert tokenizer(text).input_ids == before(text).input_ids
    assert tokenizer.get_vocab() == {**before.get_vocab(), "ba": 6, "c": 7, "<|end|>": 8}
    assert tokenizer("ab<|end|>c").input_ids == [3, 8, 7]
    assert tokenizer.decode([6, 4, 8]) == "ba a<|end|>"
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.get_input_embeddings().weight.shape == merged.get_output_embeddings().weight.shape == (9, 8)
    assert merged(torch.tensor([[8, 6]])).logits.shape == (1, 2, 9)


def test_files_that_list_added_tokens_list_the_new_ones(tmp_path: Path) -> None:
    """`added_tokens.json`, and `added_tokens_decoder` in the tokenizer's config; all else there stays."""
    (base, _), (sft, _) = (
        model(tmp_path / "base", words(["?"], ["<s>", "<x>"]), 3, 1),
        model(tmp_path / "sft", words(["?"], ["<s>"]), 2, 2),
    )
    (sft / "added_tokens.json").write_text('{"<s>": 1}')
    (sft / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "added_tokens_decoder": {"1": {"content": "<s>"}}}'
    )
    out = surgery.apply(recipe(linear(), vocabulary="union"), [base, sft], tmp_path / "out").out
    assert json.loads((out / "added_tokens.json").read_text()) == {"<s>": 1, "<x>": 2}
    found = json.loads((out / "tokenizer_config.json").read_text())
    assert found["bos_token"] == "<s>"
    assert found["added_tokens_decoder"].keys() == {"1", "2"}
    assert found["added_tokens_decoder"]["2"]["content"] == "<x>"
    surgery.verify(out)


def test_unigram_gets_special_tokens_only(tmp_path: Path) -> None:
    """Entries would change how it splits texts; the remedy is to keep the tokens of start."""
    (base, _) = model(tmp_path / "base", unigram(["?", "▁a", "▁b"], ["<s>", "<x>"]), 5, 1)
    (same, _) = model(tmp_path / "same", unigram(["?", "▁a"], ["<s>", "<x>"]), 4, 1)
    (sft, _) = model(tmp_path / "sft", unigram(["?", "▁a"], ["<s>"]), 3, 2)
    (fault,) = faults(recipe(linear(), vocabulary="union"), base, sft)
    assert fault == (
        "recipe output: vocabulary: the tokenizer of `sft` cannot have the tokens of all roles: a Unigram tokenizer "
        "splits texts by all entries that it has, so it cannot get 1 token (`▁b`) of another vocabulary; take `start`"
    )
    out = surgery.apply(recipe(linear(), vocabulary="union"), [same, sft], tmp_path / "out").out
    assert Tokenizer.from_file(str(out / "tokenizer.json")).token_to_id("<x>") == 3


# --- other kinds of tokenizers -----------------------------------------------------------------------------------


def test_kinds_that_write_bytes_differently_are_matched_by_bytes(tmp_path: Path) -> None:
    """`Ġa` and `▁a` both mean a space and an a; special tokens mean their text; what is not certain is not matched."""
    base_tokens = byte_level(["a", "Ġa", "Ã©", "Ċ", "▁"], added=["<s>"])
    sft_tokens = sentencepiece(["▁a", "a", "é", "<0x0A>", "Ġ"], added=["<s>"])
    (base, B), (sft, S) = model(tmp_path / "base", base_tokens, 6, 1), model(tmp_path / "sft", sft_tokens, 6, 2)
    out = read(surgery.apply(recipe(linear()), [base, sft], tmp_path / "out").out)[EMBEDDING]
    b, s = B[EMBEDDING], S[EMBEDDING]
    pairs = [(1, 0), (0, 1), (2, 2), (3, 3), (None, 4), (5, 5)]
    assert torch.equal(out, torch.stack([s[j] if i is None else mean(b[i], s[j]) for i, j in pairs]))
    (fault,) = faults(recipe(linear(), vocabulary="union"), base, sft)
    assert (
        "that of `base` (byte-level) writes its entries otherwise (sentencepiece here), found 1 token (`▁`) to add"
        in fault
    )


def test_entries_of_unknown_kinds_are_matched_by_exact_text(tmp_path: Path) -> None:
    """Words and a byte-level tokenizer: `a` is `a`, `Ġa` is only `Ġa`."""
    (base, B), (sft, S) = (
        model(tmp_path / "base", byte_level(["a", "Ġa", "Ġb"]), 3, 1),
        model(tmp_path / "sft", words(["?", "Ġb", "a", " a"]), 4, 2),
    )
    out = read(surgery.apply(recipe(linear()), [base, sft], tmp_path / "out").out)[EMBEDDING]
    b, s = B[EMBEDDING], S[EMBEDDING]
    assert torch.equal(out, torch.stack([s[0], mean(b[2], s[1]), mean(b[0], s[2]), s[3]]))


def test_a_tokenizer_without_tokenizer_json_is_read_by_transformers(tmp_path: Path) -> None:
    """GPT-2's `vocab.json` and `merges.txt`."""
    (base, B), (sft, S) = (
        model(tmp_path / "base", None, 4, 1),
        model(tmp_path / "sft", byte_level(["b", "a"], added=["<x>"]), 3, 2),
    )
    (base / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (base / "merges.txt").write_text("#version: 0.2\na b\n")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    out = read(surgery.apply(recipe(linear()), [base, sft], tmp_path / "out").out)[EMBEDDING]
    b, s = B[EMBEDDING], S[EMBEDDING]
    assert torch.equal(out, torch.stack([mean(b[1], s[0]), mean(b[0], s[1]), s[2]]))


# --- what is refused ---------------------------------------------------------------------------------------------


def test_rows_are_matched_by_position_only_where_tokens_agree(tmp_path: Path) -> None:
    """Without `vocabulary`: the same number of rows, and tokens that differ, is a conflict that names both remedies."""
    (base, _), (sft, _) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    (fault,) = faults(recipe(linear(), vocabulary=None), base, sft)
    assert fault == (
        "recipe steps[0]: the vocabularies differ: 4 token ids do not mean the same: 1 is `b` in `sft` and `a` in "
        "`base`, 2 is `a` in `sft` and `b` in `base`, 3 is `e` in `sft` and `c` in `base` and 1 more; match them by "
        "their tokens, `--set output.vocabulary=start` (or union), or leave them out, `exclude: [embedding, lm_head]` "
        "(2 tensors in all)"
    )
    copy = {"op": "reset_layers", "from": "base", "select": {"tensors": ["lm_head"]}}
    assert len(faults(recipe(copy, vocabulary=None), base, sft)) == 1
    surgery.plan(recipe(linear(select={"exclude": ["embedding", "lm_head"]}), vocabulary=None), [base, sft])
    surgery.plan(recipe(linear(), vocabulary=None), [base, sft], settings={"output.vocabulary": "start"})


def test_a_row_without_a_token_is_another_row(tmp_path: Path) -> None:
    """A token that was added in the padding; ids beyond the rows do not count; a tokenizer that is lent may lack it."""
    (base, _), (sft, _) = (
        model(tmp_path / "base", words(["?", "a"]), 3, 1),
        model(tmp_path / "sft", words(["?", "a"], ["<x>", "<y>"]), 3, 2),
    )
    (fault,) = faults(recipe(linear(), vocabulary=None), base, sft)
    assert "1 token id does not mean the same: 2 is `<x>` in `sft` and no token in `base`; match" in fault
    step = linear(select={"layers": "all"})
    surgery.plan(recipe(step, output={"vocabulary": None, "tokenizer": "base"}), [base, sft])
    (fault,) = faults(recipe(step, start="base", output={"vocabulary": None, "tokenizer": "sft"}), base, sft)
    assert fault == (
        "recipe output: tokenizer: that of `sft` does not fit the rows of the output: 1 token id does not mean the "
        "same: 2 is no token in `base` and `<x>` in `sft`; take the tokenizer of `base`"
    )


def test_what_could_not_be_compared_is_told(tmp_path: Path) -> None:
    """One tokenizer missing, or unreadable; of two missing nothing is said."""
    (base, _), (sft, _) = model(tmp_path / "base", None, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    made = recipe(linear(), vocabulary=None)
    remark = "rows of `sft` and `base` are matched by position, without a check: "
    assert surgery.plan(made, [base, sft]).remarks == (f"{remark}`base` has no `tokenizer.json`",)
    (base / "tokenizer.json").write_text("{}")
    (found,) = surgery.plan(made, [base, sft]).remarks
    assert found.startswith(f"{remark}the tokenizer in `{base}/tokenizer.json` has another form than expected")
    for path in (base, sft):
        (path / "tokenizer.json").unlink()
    assert surgery.plan(made, [base, sft]).remarks == ()


def test_models_without_a_tokenizer(tmp_path: Path) -> None:
    """The error names the role, the place and what is missing; a role whose rows nobody reads needs none."""
    (base, _), (sft, _) = model(tmp_path / "base", None, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    (fault,) = faults(recipe(linear()), base, sft)
    assert fault.startswith(
        f"recipe output: vocabulary: tokens of `base` are not known: `{base}` has no tokenizer: no `tokenizer.json`"
    )
    (fault,) = faults(recipe(linear()), base / "model.safetensors", sft)
    assert "is a single file, without a tokenizer; give the directory that holds both" in fault
    surgery.plan(recipe(linear(select={"layers": "all"})), [base, sft])


def spoilt(directory: Path, what: str) -> tuple[Path, Path]:
    """A base and an SFT checkpoint, with something wrong."""
    rows, shape = (5, {}) if what == "few rows" else (6, {"width": 16} if what == "width" else {})
    tensors = llama(
        seed=1, layers=1, vocabulary=rows, dtype=torch.float32 if what == "dtype" else torch.bfloat16, **shape
    )
    if what == "tied":
        del tensors[HEAD]
    if what == "quantised":
        tensors[EMBEDDING] = tensors[EMBEDDING].to(torch.int8)
    base = save(BASE, write(directory / "base", tensors, config=config(rows, tie_word_embeddings=what == "tied")))
    sft, _ = model(directory / "sft", SFT, 6, 2)
    if what == "config":
        (sft / "config.json").write_text(json.dumps(LLAMA_CONFIG))
    return base, sft


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("few rows", "of `base` has 5 rows, and its tokenizer has the token `<pad>` with the id 5; expected a row for"),
        ("width", "is [6, 8] in `sft` and [6, 16] in `base`; expected rows of one length"),
        ("dtype", "is BF16 in `sft` and F32 in `base`; name the dtype of the output"),
        ("tied", "the output head is a matrix of its own in `sft` and tied to the embedding in `base`"),
        ("quantised", "`model.embed_tokens.weight` is quantised, in `sft` or in `base`; dequantise the model first"),
        ("config", "the config of `sft` does not say `vocab_size: 6`, which becomes 8; correct its `config.json`"),
    ],
)
def test_what_does_not_fit_into_a_union(tmp_path: Path, what: str, message: str) -> None:
    """Found in the plan, before anything else."""
    (found,) = faults(recipe(linear(), vocabulary="union"), *spoilt(tmp_path, what))
    assert found.startswith("recipe output: vocabulary: ")
    assert message in found


def test_one_tokenizer_at_a_time(tmp_path: Path) -> None:
    """`tokenizer` of another role and `vocabulary` contradict each other."""
    (base, _), (sft, _) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    (fault,) = faults(recipe(linear(), output={"tokenizer": "base"}), base, sft)
    assert (
        "tokenizer: found `base`, and with `vocabulary` the output has the tokenizer of `sft`; leave out one" in fault
    )
    surgery.plan(recipe(linear(), output={"tokenizer": "sft"}), [base, sft])


def test_a_head_of_other_rows_than_the_embedding(tmp_path: Path) -> None:
    """Then it is not known which of the two the tokens belong to."""
    (base, _), (_, S) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    odd = save(SFT, write(tmp_path / "odd", {**S, HEAD: torch.ones(7, 8).bfloat16()}, config=config(6)))
    (fault,) = faults(recipe(linear()), base, odd)
    assert "`lm_head.weight` of `sft` has 7 rows, and the embedding 6; expected a row for each token in both" in fault


def test_quantised_rows_are_not_taken_apart(tmp_path: Path) -> None:
    """Copying them whole would be possible, row by row it is not."""
    base, _ = spoilt(tmp_path, "quantised")
    copy = {"op": "reset_layers", "from": "base", "select": {"tensors": ["embedding"]}}
    S = {**llama(seed=2, layers=1, vocabulary=6), EMBEDDING: torch.ones(6, 8).to(torch.int8)}
    packed = save(SFT, write(tmp_path / "packed", S, config=config(6)))
    (fault,) = faults(recipe(copy), base, packed)
    assert "`model.embed_tokens.weight` of `base` is I8, whose rows cannot be taken apart; dequantise" in fault


def test_the_command_line_plans_and_applies(tmp_path: Path, surgery_command: Run) -> None:
    """`--set output.vocabulary=union` on any recipe: notes, actions, and what was done."""
    (base, _), (sft, _) = model(tmp_path / "base", BASE, 6, 1), model(tmp_path / "sft", SFT, 6, 2)
    step = {"op": "truncate_rank", "rank": 1, "select": {"tensors": ["mlp"]}}
    path = tmp_path / "recipe.json"
    path.write_text(
        json.dumps({"name": "r", "models": ["base", "sft"], "steps": [linear(select={"tensors": ["norm"]}), step]})
    )
    code, out, _ = surgery_command("plan", path, base, sft, "--set", "output.vocabulary=union")
    assert code == 0
    assert "note: vocabulary: adds 2 tokens (`c`, `d`) of `base`" in out
    code, out, _ = surgery_command("apply", path, base, sft, tmp_path / "out", "--set", "output.vocabulary=union")
    assert code == 0
    assert "2 gathered" in out
