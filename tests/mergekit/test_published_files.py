"""Recipe files of mergekit that others have published, run as they are on tiny models in the hub's cache.

The files in `published/` say what the published ones say, in our words; each names its source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.commands import Run
from tests.mergekit.formulas import elected
from tests.mergekit.merges import MERGES, Models
from tests.mergekit.tiny_hub import WORDS, TinyHub
from tests.pairs import read

PUBLISHED = Path(__file__).parent / "published"
UNITS = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-22}  # half a unit, or a few of float32


def test_each_file_is_here():
    """No file is left out, and each says where it comes from."""
    files = {path.stem: path.read_text() for path in PUBLISHED.iterdir()}
    assert files.keys() == MERGES.keys()
    assert all(text.startswith("# After ") for text in files.values())


def run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Run) -> tuple[Path, Models]:
    """The output of a file, by the command line, and the models by the rows of its tokens."""
    merge = MERGES[name]
    hub = TinyHub(tmp_path, monkeypatch, merge.kind, merge.layers)
    made = {model: hub.model(model, merge.special.get(model, ())) for model in merge.models}
    code, _, err = command("apply", PUBLISHED / f"{name}.yml", tmp_path / "out")
    assert code == 0, err
    if merge.tokens:
        special = {model: list(merge.special.get(model, ())) for model in made}
        made = {model: by_token(made, model, special, merge.tokens) for model in made}
    return tmp_path / "out", list(made.values())


def by_token(
    models: Mapping[str, Mapping[str, Tensor]], model: str, special: Mapping[str, list[str]], tokens: Sequence[str]
) -> dict[str, Tensor]:
    """A model whose embedding and head have a row for each word and each of `tokens`: its own, or else that of the
    first model with the token.
    """

    def row(name: str, token: str) -> Tensor:
        owner = next(each for each in (model, *models) if token in special[each])
        return models[owner][name][len(WORDS) + special[owner].index(token)]

    found = dict(models[model])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        found[name] = torch.stack([*found[name][: len(WORDS)], *(row(name, token) for token in tokens)])
    return found


@pytest.mark.parametrize("name", MERGES)
def test_a_published_file_runs_unchanged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surgery_command: Run
):
    """Dtype, layers, tokens and config are as it says, transformers has a place for every tensor, and each entry is
    that of the method's formula, rounded once.
    """
    merge = MERGES[name]
    out, models = run(name, tmp_path, monkeypatch, surgery_command)
    tensors = read(out)
    assert {tensor.dtype for tensor in tensors.values()} == {merge.dtype}
    config = json.loads((out / "config.json").read_text())
    rows = len(WORDS) + len(merge.tokens)
    assert config["n_layer" if merge.kind == "gpt2" else "num_hidden_layers"] == merge.made
    assert (config["vocab_size"], config["model_type"]) == (rows, merge.kind)
    vocabulary = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    assert sorted(vocabulary, key=lambda token: vocabulary[token]) == [*WORDS, *merge.tokens]
    template = out / "chat_template.jinja"
    assert merge.template in (template.read_text() if template.exists() else "")
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]  # noqa: PT018
    assert model.get_input_embeddings().weight.shape[0] == rows
    for tensor_name, tensor in tensors.items():
        if merge.expected is not None:
            expected = merge.expected(models, tensor_name)
            assert tensor.shape == expected.shape
            assert ((tensor.double() - expected).abs() <= UNITS[merge.dtype] * expected.abs() + 2e-6).all(), tensor_name


def test_what_dare_keeps_is_elected_and_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surgery_command: Run):
    """Each entry is what the election makes of some of the task vectors, scaled by the density: of each of them about
    as many are kept as it says.
    """
    out, (base, *others) = run("daredevil-7b", tmp_path, monkeypatch, surgery_command)
    weights, density = [0.4, 0.3, 0.3], 0.53
    kept = torch.zeros(3)
    total = 0
    for name, tensor in read(out).items():
        deltas = [(model[name] - base[name]) / density for model in others]
        subsets = [*product([0, 1], repeat=3)]
        choices = [
            base[name] + elected([d * k for d, k in zip(deltas, subset, strict=True)], weights, normalize=False)
            for subset in subsets
        ]
        distances = (torch.stack(choices) - tensor.double()).abs()
        nearest, which = distances.min(0)
        assert (nearest <= UNITS[torch.bfloat16] * tensor.double().abs() + 1e-6).all(), name
        same_signs = torch.stack([d.sign() for d in deltas]).sum(0).abs() == 3  # there the subset shows in the sum
        kept += torch.tensor(subsets, dtype=torch.float32)[which[same_signs]].sum(0)
        total += int(same_signs.sum())
    assert total > 500
    assert ((kept / total - density).abs() < 0.06).all()


def test_what_arcee_fusion_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surgery_command: Run):
    """Each entry is that of one of the two models; that of the second is taken where it differs most."""
    out, (base, other) = run("arcee-fusion", tmp_path, monkeypatch, surgery_command)
    of_other = entries = 0
    for name, tensor in read(out).items():
        choices = torch.stack([base[name], other[name]]).to(tensor.dtype)
        assert ((tensor == choices[0]) | (tensor == choices[1])).all(), name
        of_other += int((tensor != choices[0]).sum())
        entries += tensor.numel()
    assert 0 < of_other < entries / 2


@pytest.mark.parametrize(("name", "density"), [("wingless-moon-maiden", 0.5), ("velvet-orchid-12b", 0.5)])
def test_what_della_leaves_between_the_models(
    name: str, density: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surgery_command: Run
):
    """Where everything is dropped, the base is left; that is so for about (1 - density) squared of the entries."""
    out, (base, *_) = run(name, tmp_path, monkeypatch, surgery_command)
    tensors = {key: tensor for key, tensor in read(out).items() if "mlp" in key}
    left = sum(int((tensor == base[key].to(tensor.dtype)).sum()) for key, tensor in tensors.items())
    share = left / sum(tensor.numel() for tensor in tensors.values())
    assert abs(share - (1 - density) ** 2) < 0.1
