"""Adapters that cannot be used, and names that cannot be told apart, are refused in one message at opening."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

import surgery
from surgery.adapters.config import Patterns
from surgery.adapters.keys import find_prefixes
from surgery.adapters.naming import split_source
from surgery.checkpoint import open_checkpoint
from surgery.errors import CheckpointError, PlanError
from tests.adapters.peft import PREFIX, Tensors, factors, write_adapter
from tests.pairs import LLAMA_CONFIG, llama, write
from tests.tiny_tokenizers import save, words

TIED = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
Q = f"{PREFIX}model.layers.0.self_attn.q_proj"


def tied() -> Tensors:
    """A model without a head of its own."""
    base = llama()
    del base["lm_head.weight"]
    return base


def refused(tmp_path: Path, adapter: Tensors | None = None, base: Tensors | None = None, **fields: Any) -> str:
    """The message for this adapter over this base."""
    base = base or llama()
    model = f"{write(tmp_path / 'base', base)}+{write_adapter(tmp_path / 'lora', adapter or factors(base), **fields)}"
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(model)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOKR"}, "of type `LOKR`; expected `LORA`"),
        ({"peft_type": "IA3"}, "of type `IA3`"),
        ({"peft_type": None}, "of type `None`"),
        ({"use_dora": True}, "`use_dora` is set: it is DoRA"),
        ({"use_what_comes_next": True}, "`use_what_comes_next` is set, which is not known"),
        ({"bias": "all"}, "`bias` is `all`"),
        ({"bias": "lora_only"}, "`bias` is `lora_only`"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base before training"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "bare parameters"),
        ({"r": 4}, "its rank is 3, and 4 in `adapter_config.json`"),
        ({"rank_pattern": {"q_proj": 5}}, "its rank is 3, and 5"),
        ({"r": 0}, "`r` is `0`"),
        ({"r": True}, "`r` is `True`"),
        ({"lora_alpha": "16"}, "`lora_alpha` is `16`"),
        ({"lora_alpha": float("inf")}, "`lora_alpha` is `inf`"),
        ({"rank_pattern": ["q_proj"]}, "`rank_pattern` is `['q_proj']`"),
        ({"alpha_pattern": {"q_proj": None}}, "gives `q_proj` the value `None`"),
        ({"alpha_pattern": {"q_(": 2}}, "is no pattern of names that is understood here"),
        ({"modules_to_save": "lm_head"}, "expected a list of names"),
    ],
)
def test_configurations(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    """What the configuration says that is not supported, or means nothing."""
    assert message in refused(tmp_path, **fields)


@pytest.mark.parametrize(
    ("patterns", "module", "value"),
    [
        ({}, "a.q", 8),
        ({"q": 1}, "a.q", 1),
        ({"q": 1}, "a.xq", 8),
        ({"a.q": 1}, "b.a.q", 1),
        ({"q": 1, "a.q": 2}, "a.q", 1),
        ({"a.q": 2, "q": 1}, "a.q", 2),
        ({"[qk]": 3, "q": 1}, "a.q", 3),
        ({"q": 1, ".*": 3}, "a.q", 1),
        ({r"layers\.[01]\.q": 3}, "model.layers.1.q", 3),
        ({r"layers\.[01]\.q": 3}, "model.layers.2.q", 8),
        ({"^a.q": 3}, "b.a.q", 8),
        ({"^a.q": 3}, "a.q", 3),
    ],
)
def test_patterns(patterns: dict[str, int], module: str, value: int) -> None:
    """The first that is the name, or its end after a dot, as a regular expression."""
    assert Patterns(patterns).of(module, 8) == value


def _rename(old: str, new: str) -> Callable[[Tensors], None]:
    def change(adapter: Tensors) -> None:
        adapter[new] = adapter.pop(old)

    return change


def _put(name: str, tensor: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda adapter: adapter.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put(f"{Q}.lora_magnitude_vector", torch.ones(8)), "lora_magnitude_vector"),
        (_put(f"{Q}.hada_w1_a", torch.ones(8, 3)), "hada_w1_a"),
        (_put(f"{Q}.lora_A.other.weight", torch.ones(3, 8)), "expected `lora_A`, `lora_B`"),
        (_put("model.layers.0.lora_A.weight", torch.ones(3, 8)), "it holds `model.layers.0.lora_A.weight`"),
        (_put(f"{PREFIX}model.norms.weight", torch.ones(8)), "`model.norms.weight`: the base has no such tensor"),
        (_put(f"{PREFIX}model.norm.weight", torch.ones(9)), "is [9], and [8] in the base"),
        (_put(f"{Q}.lora_B.bias", torch.ones(8)), "it has a bias, and its module in the base none"),
        (_rename(f"{Q}.lora_A.weight", f"{PREFIX}model.layers.7.q_proj.lora_A.weight"), "is missing"),
        (_put(f"{Q}.lora_A.weight", torch.ones(3, 9)), "do not fit the base's weight of [8, 8] (or `fan_in_fan_out`"),
        (_put(f"{Q}.lora_A.weight", torch.ones(4, 8)), "are no factors of a matrix"),
        (_put(f"{Q}.lora_A.weight", torch.ones(3, 8, 1)), "are no factors of a matrix"),
        (_put(f"{Q}.lora_A.weight", torch.ones(3, 8, dtype=torch.int8)), "`I8` cannot be computed with"),
    ],
)
def test_contents(tmp_path: Path, change: Callable[[Tensors], None], message: str) -> None:
    """Tensors that mean nothing here, that the base lacks or that do not fit."""
    adapter = factors(llama())
    change(adapter)
    assert message in refused(tmp_path, adapter)


def test_all_faults_in_one_message(tmp_path: Path) -> None:
    """Several kinds of faults are told together, each once, with a count."""
    adapter = factors(llama())
    adapter[f"{PREFIX}model.norm.weight"] = torch.ones(9)
    message = refused(tmp_path, adapter, r=2)
    assert "`model.layers.0.mlp.down_proj` and 3 more: its rank is 3, and 2" in message
    assert "is [9], and [8] in the base" in message


def test_quantised_bases(tmp_path: Path) -> None:
    """A base that holds integers cannot be added to."""
    base = llama()
    adapter = factors(base)
    base["model.layers.0.self_attn.q_proj.weight"] = torch.ones(8, 8, dtype=torch.uint8)
    assert "`U8` cannot be computed with; dequantise" in refused(tmp_path, adapter, base)


def test_a_tied_head_that_is_stored(tmp_path: Path) -> None:
    """Embedding and head that must stay equal cannot be changed one without the other."""
    base = llama()
    write(tmp_path / "base", base, config=TIED)
    write_adapter(tmp_path / "lora", factors(base, ("lm_head",)))
    with pytest.raises(CheckpointError, match="ties to each other"):
        open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'lora'}")


@pytest.mark.parametrize(
    ("names", "fields", "message"),
    [
        (["model.embed_tokens"], {}, "stores `model.embed_tokens.weight` whole"),
        (["lm_head"], {}, "it changes `lm_head.weight` by itself, which in the base is `model.embed_tokens.weight`"),
        (["lm_head", "model.embed_tokens"], {}, "it changes `lm_head.weight` by itself"),
        (["lm_head"], {"ensure_weight_tying": True}, "and not `model.embed_tokens.weight`, which is to be the same"),
    ],
)
def test_a_tied_head_that_is_not_stored(tmp_path: Path, names: list[str], fields: dict[str, Any], message: str) -> None:
    """What would make two matrices of one is refused, with what to do instead."""
    base = tied()
    adapter = factors(base) | {f"{PREFIX}{name}.weight": torch.ones(20, 8) for name in names}
    write(tmp_path / "base", base, config=TIED)
    write_adapter(tmp_path / "lora", adapter, **fields)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'lora'}")
    assert message in str(caught.value)
    assert ("`ensure_weight_tying` of peft, or merge it" in str(caught.value)) == (not fields)


@pytest.mark.parametrize(
    ("fields", "change", "helps"),
    [
        ({"use_dora": True}, None, True),
        ({}, (f"{Q}.lora_magnitude_vector", torch.ones(8)), True),
        ({"r": 4}, None, False),
        ({}, (f"{PREFIX}model.norm.weight", torch.ones(9)), False),
        ({}, (f"{PREFIX}model.layers.9.mlp.weight", torch.ones(9)), False),
        ({"alpha_pattern": {"(a+)+(?=b)": 1}}, None, False),
        ({"init_lora_weights": "olora"}, None, False),
    ],
)
def test_remedies(tmp_path: Path, fields: dict[str, Any], change: tuple[str, torch.Tensor] | None, helps: bool) -> None:
    """To merge it with peft is proposed where peft can do that, and not of what is damaged or fits another base."""
    adapter = factors(llama()) | ({} if change is None else {change[0]: change[1]})
    assert ("merge it with peft" in refused(tmp_path, adapter, **fields)) == helps


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: path.rmdir(), "does not exist"),
        (lambda _: None, "holds no `adapter_config.json`"),
        (lambda path: (path / "adapter_config.json").write_text("{}"), "holds no `adapter_model.safetensors`"),
        (
            lambda path: [(path / name).write_text("{}") for name in ("adapter_config.json", "adapter_model.bin")],
            "but a pickle",
        ),
        (
            lambda path: [(path / f"adapter_{name}").write_text("[") for name in ("config.json", "model.safetensors")],
            "cannot be read",
        ),
        (
            lambda path: (
                (path / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
                save_file({}, path / "adapter_model.safetensors"),
            ),
            "it holds no tensors",
        ),
    ],
)
def test_directories(tmp_path: Path, prepare: Callable[[Path], object], message: str) -> None:
    """What is no adapter's directory, and what is damaged."""
    write(tmp_path / "base", llama())
    (tmp_path / "lora").mkdir()
    prepare(tmp_path / "lora")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'lora'}")


@pytest.mark.parametrize("source", ["{base}+", "+{base}", "{base}++{lora}", "+"])
def test_names_that_are_empty(tmp_path: Path, source: str) -> None:
    """A `+` without a name on either side is refused."""
    base = write(tmp_path / "base", llama())
    lora = write_adapter(tmp_path / "lora", factors(llama()))
    with pytest.raises(CheckpointError, match=r"is no model|does not exist"):
        open_checkpoint(source.format(base=base, lora=lora))


def test_an_adapter_alone(tmp_path: Path) -> None:
    """It is no model: the message says how to name it."""
    lora = write_adapter(tmp_path / "lora", factors(llama()))
    with pytest.raises(CheckpointError, match=r"not a model; name it behind its base, `BASE\+ADAPTER`"):
        open_checkpoint(lora)


def test_paths_with_a_plus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that exists is one name, whatever it holds; hub ids end at the first `+`."""
    monkeypatch.chdir(tmp_path)
    for name in ("a+b", "a", "c+d"):
        (tmp_path / name).mkdir()
    assert split_source("a+b") == ["a+b"]
    assert split_source("a+b+c+d") == ["a+b", "c+d"]
    assert split_source("a+c+d") == ["a", "c+d"]
    assert split_source("org/base@v1+org/lora+org/two@main") == ["org/base@v1", "org/lora", "org/two@main"]
    base = write(tmp_path / "my+base", llama())
    lora = write_adapter(tmp_path / "my+lora", factors(llama()))
    assert len(open_checkpoint(f"{base}+{lora}").adapters) == 1
    assert not open_checkpoint(base).adapters


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both may be hub ids: of an adapter its two files are fetched, and a base that it does not name is a note."""
    base = write(tmp_path / f"snapshots/{'b' * 40}", llama())
    lora = write_adapter(tmp_path / f"snapshots/{'a' * 40}", factors(llama()), base_model_name_or_path="org/else")
    asked = []

    def snapshot(repo: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((repo, revision, "adapter_model.safetensors" in allow_patterns, len(ignore_patterns)))
        return str(lora if "lora" in repo else base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    opened = open_checkpoint("org/base@v1+me/lora@v2")
    assert asked == [("org/base", "v1", False, 3), ("me/lora", "v2", True, 1)]
    assert opened.hub_id == "org/base"
    assert (opened.adapters[0].hub_id, opened.adapters[0].revision) == ("me/lora", "a" * 40)
    assert opened.notes == ("`me/lora@v2` names `org/else` as its base, not `org/base@v1`",)
    (lora / "adapter_config.json").unlink()
    (lora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 3, "base_model_name_or_path": "Org/Base"})
    )
    assert open_checkpoint("org/base+me/lora").notes == ()


@pytest.mark.parametrize(
    ("names", "base", "prefixes"),
    [
        (["a.b"], ["a.b"], ("", "")),
        (["x.a.b", "x.c"], ["a.b", "c"], ("x.", "")),
        (["a.b", "c"], ["x.a.b", "x.c"], ("", "x.")),
        (["model.a.b", "model.c"], ["language.model.a.b", "language.model.c"], ("", "language.")),
        (["m.t.a.w", "m.t.b.w"], ["n.a.w", "n.b.w"], ("m.t.", "n.")),
        (["layers.0.q.w"], ["text.layers.0.q.w", "vision.layers.0.q.w"], ("", "")),
        (["model.layers.0.q.w"], ["model.layers.1.q.w"], ("", "")),
        (["x.a", "y.b"], ["a", "b"], ("", "")),
        (["x.a"], ["b"], ("", "")),
        ([], ["b"], ("", "")),
    ],
)
def test_prefixes(names: list[str], base: list[str], prefixes: tuple[str, str]) -> None:
    """One change of the front that makes all names the base's; none where there is none."""
    assert find_prefixes(names, base) == prefixes


def test_rows_that_are_matched_by_token(tmp_path: Path) -> None:
    """An adapter of the embedding is named where rows are taken apart; one of other tensors is no hindrance."""
    models = []
    for name, tokens in (("base", ["?", "a", "b"]), ("sft", ["?", "b", "a"])):
        tensors = llama(layers=1, vocabulary=3)
        models.append(save(words(tokens), write(tmp_path / name, tensors, config={**LLAMA_CONFIG, "vocab_size": 3})))
    recipe = {
        "name": "mean", "models": ["base", "sft"], "output": {"vocabulary": "start"},
        "steps": [{"op": "linear", "models": ["base", "sft"]}],
    }  # fmt: skip
    base, tuned = models
    made = {
        target: write_adapter(
            tmp_path / target, factors(llama(layers=1, vocabulary=3), [target]), target_modules=[target]
        )
        for target in ("lm_head", "q_proj")
    }
    with pytest.raises(PlanError, match=r"`lm_head.weight` of `base` has an adapter.*apply merge-adapter"):
        surgery.plan(recipe, [f"{base}+{made['lm_head']}", tuned])
    assert surgery.plan(recipe, [f"{base}+{made['q_proj']}", tuned]).bytes_written
