"""Files of mergekit that name a tokenizer, run against mergekit's rules for the rows of tokens, written anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

import surgery
from surgery.errors import PlanError
from surgery.mergekit import Converted, convert
from surgery.yaml_source import read_yaml
from tests.mergekit.token_models import EMBEDDING, HEAD, TASK_ARITHMETIC, TOKENIZERS, write_models
from tests.pairs import read, write

MATRIX = "model.layers.0.mlp.up_proj.weight"
Rows = dict[str, Tensor]  # by token
Merge = Callable[[Mapping[str, Tensor]], Tensor]  # of the tensors of all models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models of two layers whose tokens differ in number and order; math has two rows of padding."""
    return write_models(tmp_path_factory.mktemp("models"), list(TOKENIZERS), 2, math=2)


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of all tokens."""
    return dict(tokenizer.get_vocab(with_added_tokens=True))


def aligned(tensors: Mapping[str, Tensor], base: str | None, tokens: Sequence[str]) -> dict[str, Rows]:
    """mergekit's rows of each model: its own, else the base's, else the mean of those that have the token."""
    own = {
        name: {token: tensor[number].double() for token, number in vocabulary(TOKENIZERS[name]).items()}
        for name, tensor in tensors.items()
    }
    found: dict[str, Rows] = {name: {} for name in tensors}
    for token in tokens:
        having = [rows[token] for rows in own.values() if token in rows]
        in_place = own[base][token] if base is not None and token in own[base] else sum(having) / len(having)
        for name, rows in own.items():
            found[name][token] = rows.get(token, in_place)
    return found


def check(out: Path, models: Path, names: Sequence[str], base: str | None, merge: Merge, but: str = "") -> None:
    """Embedding and head, row by row, and a matrix; `but` is a token whose row differs from mergekit's."""
    found = read(out)
    of = {name: read(models / name) for name in names}
    ids = vocabulary(Tokenizer.from_file(str(out / "tokenizer.json")))
    for name in (EMBEDDING, HEAD):
        rows = aligned({model: tensors[name] for model, tensors in of.items()}, base, list(ids))
        for token, number in ids.items():
            expected = merge({model: rows[model][token] for model in names})
            close = torch.allclose(found[name][number].double(), expected, rtol=1e-5, atol=1e-6)
            assert close == (token not in but.split()), (name, token)
    expected = merge({model: tensors[MATRIX].double() for model, tensors in of.items()})
    torch.testing.assert_close(found[MATRIX].double(), expected, rtol=1e-5, atol=1e-6)


SLERP = """\
models: [{model: MODELS/base}, {model: MODELS/sft}]
base_model: MODELS/base
merge_method: slerp
parameters: {t: 0}
"""
LINEAR = """\
models: [{model: MODELS/math}, {model: MODELS/code}, {model: MODELS/sft}]
merge_method: linear
parameters: {weight: 1, normalize: false}
"""


def task_arithmetic(W: Mapping[str, Tensor]) -> Tensor:
    return W["base"] + 0.3 * (W["sft"] - W["base"]) + 0.5 * (W["math"] - W["base"])


@pytest.mark.parametrize(
    ("section", "tokens"),
    [
        ("tokenizer_source: base", "? a b c <pad>"),
        ("tokenizer: {source: base}", "? a b c <pad>"),
        ("tokenizer: {source: MODELS/base}", "? a b c <pad>"),
        ("tokenizer_source: union", "? a b c <pad> d <end> e"),
        ("tokenizer: {source: union}", "? a b c <pad> d <end> e"),
        ("tokenizer: {}", "? a b c <pad> d <end> e"),
    ],
)
def test_task_vectors_of_tokens(section: str, tokens: str, run: Callable[[str], Path], models: Path):
    """Of a token that a model lacks it is 0; a token of one model alone keeps its row."""
    out = run(TASK_ARITHMETIC + section)
    check(out, models, ["base", "sft", "math"], "base", task_arithmetic)
    ids = vocabulary(Tokenizer.from_file(str(out / "tokenizer.json")))
    assert sorted(ids, key=lambda token: ids[token]) == tokens.split()
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["rope_theta"]) == (len(ids), 0)


def test_the_tokens_of_the_other_model(run: Callable[[str], Path], models: Path):
    """Of two models either may lend its tokenizer: the base is at t = 0 as before, its rows in the other's order."""
    out = run(SLERP + "tokenizer_source: MODELS/sft\n")
    check(out, models, ["base", "sft"], "base", lambda W: W["base"])
    assert (out / "tokenizer.json").read_bytes() == (models / "sft" / "tokenizer.json").read_bytes()
    assert json.loads((out / "config.json").read_text())["rope_theta"] == 1


def test_the_tokens_of_any_model_without_a_base(run: Callable[[str], Path], models: Path):
    """`linear` does not distinguish its models. Rows of tokens that some lack are as the note says."""
    out = run(LINEAR + "tokenizer_source: MODELS/code\n")
    check(out, models, ["math", "code", "sft"], None, lambda W: W["math"] + W["code"] + W["sft"], but="d <end>")
    found, of = read(out)[EMBEDDING], {name: read(models / name)[EMBEDDING] for name in ("code", "sft")}
    torch.testing.assert_close(found[1], 2 * of["code"][1] + of["sft"][3])


def test_the_tokens_of_one_model_of_three(run: Callable[[str], Path], models: Path):
    """Neither of the base nor of all. What another model lacks of them has that model's row, as the note says."""
    out = run(TASK_ARITHMETIC + "tokenizer_source: MODELS/math\n")
    check(out, models, ["base", "sft", "math"], "base", task_arithmetic, but="c <pad>")
    base, math = (read(models / name)[EMBEDDING] for name in ("base", "math"))
    torch.testing.assert_close(read(out)[EMBEDDING][1], base[3] + (0.3 + 0.5) * (math[1] - base[3]))
    assert (out / "tokenizer.json").read_bytes() == (models / "math" / "tokenizer.json").read_bytes()


def test_a_token_that_the_base_lacks_and_several_have(run: Callable[[str], Path], models: Path):
    """mergekit takes the mean of those for the base, we the first's row: the one difference that `union` makes."""
    more = "  - {model: MODELS/code, parameters: {weight: 0.9}}\nbase_model"
    out = run(TASK_ARITHMETIC.replace("base_model", more) + "tokenizer_source: union\n")

    def merge(W: Mapping[str, Tensor]) -> Tensor:
        return task_arithmetic(W) + 0.9 * (W["code"] - W["base"])

    check(out, models, ["base", "sft", "math", "code"], "base", merge, but="d <end>")
    sft, code = (read(models / name)[EMBEDDING] for name in ("sft", "code"))
    torch.testing.assert_close(read(out)[EMBEDDING][5], sft[3] + 0.9 * (code[1] - sft[3]))


@pytest.mark.parametrize("source", ["union", "MODELS/sft"])
def test_slices_with_tokens(source: str, run: Callable[[str], Path], models: Path):
    """The embedding of the first model, the head of the last, row by row; what they lack the other one lends."""
    one, two = (f"  - sources: [{{model: MODELS/{name}, layer_range: [0, 2]}}]\n" for name in ("base", "sft"))
    out = run(f"slices:\n{one}{two}merge_method: passthrough\ntokenizer: {{source: {source}}}\n")
    found = read(out)
    ids = vocabulary(Tokenizer.from_file(str(out / "tokenizer.json")))
    assert len(ids) == (7 if source == "union" else 5)
    for name, first in ((EMBEDDING, "base"), (HEAD, "sft")):
        of = {model: read(models / model)[name] for model in ("base", "sft")}
        rows = aligned(of, first, list(ids))[first]
        for token, number in ids.items():
            assert torch.equal(found[name][number].double(), rows[token]), (name, token)
    last = read(models / "sft")[MATRIX.replace("layers.0", "layers.1")]
    assert torch.equal(found[MATRIX.replace("layers.0", "layers.3")], last)


def test_an_adapters_model_lends_its_tokenizer():
    """An adapter has none of its own."""
    text = "models: [{model: a+x}, {model: b+y}]\nmerge_method: karcher\ntokenizer_source: b\n"
    data = converted(text).data
    assert isinstance(data, dict)
    assert (data["start"], data["output"]) == ("y", {"vocabulary": "start"})


def converted(text: str) -> Converted:
    return convert(read_yaml(text, "merge.yml"))


PADDING = "rows beyond the tokens (padding) stay as in `base`, mergekit removes them"
ENTRIES = (
    "tokens of other vocabularies follow by model and id, entries as entries; in mergekit in another order, and "
    "entries as added tokens, which are found in any text"
)
NO_BASE = "without `base_model` mergekit begins from the tokenizer of any model, here it is that of "

STACK = """\
slices:
  - sources: [{model: MODELS/base, layer_range: [0, 2]}]
  - sources: [{model: MODELS/sft, layer_range: [0, 2]}]
base_model: MODELS/base
merge_method: passthrough
tokenizer_source: base
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TASK_ARITHMETIC + "tokenizer_source: base", [PADDING]),
        (
            TASK_ARITHMETIC + "tokenizer_source: union",
            [
                PADDING,
                ENTRIES,
                (
                    "a model without a token that `base` lacks, too, counts as having the row of the first model that "
                    "has it, in mergekit the mean of all"
                ),
            ],
        ),
        (
            TASK_ARITHMETIC + "tokenizer_source: MODELS/math",
            [
                "the output has the config of `math`, in mergekit that of `base`",
                PADDING.replace("base", "math"),
                "a model without a token counts as having the row of `math`, in mergekit that of the base model `base`",
            ],
        ),
        (SLERP + "tokenizer_source: union", [PADDING, ENTRIES]),
        (
            SLERP + "tokenizer_source: MODELS/sft",
            ["the output has the config of `sft`, in mergekit that of `base`", PADDING.replace("base", "sft")],
        ),
        (
            LINEAR + "tokenizer_source: base",
            [
                f"{NO_BASE}`math`",
                PADDING.replace("base", "math"),
                "a model without a token counts as having the row of `math`, in mergekit the mean of all",
            ],
        ),
        (
            LINEAR + "tokenizer_source: union",
            [
                f"{NO_BASE}`math`",
                PADDING.replace("base", "math"),
                ENTRIES,
                (
                    "a model without a token counts as having the row of `math`, or else of the first model that has "
                    "it, in mergekit the mean of all"
                ),
            ],
        ),
        (
            STACK,
            [
                PADDING,
                (
                    "in mergekit only the models of the first slice lend rows to the embedding, and those of the last "
                    "to the head, and a token that these lack has zeros; here any model lends its row"
                ),
            ],
        ),
    ],
)
def test_differences_are_told(text: str, expected: list[str]):
    """In one note, where the file names the tokenizer; the paths of models are not in it."""
    (note,) = (str(note) for note in converted(text.replace("MODELS", "/secret")).notes)
    where = f"merge.yml:{len(text.splitlines())} tokenizer_source: "
    assert note.removeprefix(where).split("; ") == "; ".join(expected).split("; ")


def test_what_the_plan_finds_has_the_files_line(models: Path, tmp_path: Path):
    """A model without a tokenizer, of which mergekit assumes that it has the base's."""
    write(tmp_path / "none", read(models / "base"))
    text = TASK_ARITHMETIC.replace("MODELS/math", str(tmp_path / "none")).replace("MODELS", str(models))
    (tmp_path / "merge.yml").write_text(f"{text}tokenizer_source: union\n")
    with pytest.raises(PlanError, match=r"merge\.yml:6 tokenizer_source: vocabulary: tokens of `none` are not known"):
        surgery.plan(tmp_path / "merge.yml")
