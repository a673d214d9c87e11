"""Checkpoints from nothing: what they hold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalkit.engines.base import Model
from evalkit.rendering import Renderer
from evalkit.tasks.general_points_steps import GeneralPointsSteps
from surgery.checkpoint import open_checkpoint
from trainers import api
from trainers.errors import ConfigError, DataError, RunError

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def config(out: Path, **changes: Any) -> dict[str, Any]:
    """A tiny Llama; `changes` replace its keys."""
    given = {"out": str(out), "task": "general_points_steps", "model_type": "llama", "architecture": SMALL}
    return {**given, **changes}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    out = tmp_path_factory.mktemp("initial") / "out"
    api.init(config(out, dtype="bfloat16"))
    return out


def test_it_is_an_ordinary_checkpoint(made: Path) -> None:
    """transformers and `surgery` open it, with the sizes asked for, as many tokens as it has, and in its dtype."""
    network = AutoModelForCausalLM.from_pretrained(made)
    assert network.config.hidden_size == 32
    assert network.get_input_embeddings().num_embeddings == len(AutoTokenizer.from_pretrained(made))
    assert {info.dtype.torch for info in open_checkpoint(str(made)).tensors.values()} == {torch.bfloat16}
    assert network.generation_config.eos_token_id == AutoTokenizer.from_pretrained(made).eos_token_id == 1
    assert network.generation_config.pad_token_id == 0


def test_every_word_is_a_token(made: Path) -> None:
    """A token a word, that which asks between question and answer, and the end; decoding gives the answer back."""
    renderer = Renderer(Model("made", "", made))
    task = GeneralPointsSteps()
    for split in task.splits:
        for example in task.examples(split, 20):
            question, answer = task.question(example.data), task.reference(example.data)
            first, second = renderer.pair(task.prompt(example.data), answer, end=True)
            assert renderer.tokenizer.convert_ids_to_tokens(first) == [*question.split(), "<answer>"]
            assert renderer.tokenizer.convert_ids_to_tokens(second) == [*answer.split(), "<end>"]
            assert renderer.text(second) == answer
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.answer("x 24", end=False)) == ["<unknown>", "24"]
    assert renderer.stops == (1,)


def test_the_seed_is_the_weights(made: Path, tmp_path: Path) -> None:
    """The same seed gives the same bits, another one others, and nobody else's random numbers are touched."""
    before = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 1)):
        api.init(config(tmp_path / name, dtype="bfloat16", seed=seed))
    assert torch.equal(torch.get_rng_state(), before)
    expected = (made / "model.safetensors").read_bytes()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == expected
    assert (tmp_path / "b" / "model.safetensors").read_bytes() != expected


def test_the_manifest(made: Path) -> None:
    """It holds the configuration and the digests of all other files."""
    manifest = json.loads((made / "training.json").read_bytes())
    assert manifest["trainer"] == "init"
    assert manifest["config"]["architecture"] == SMALL
    files = {path.name for path in made.iterdir()} - {"training.json"}
    assert manifest["files"] == {name: blake3((made / name).read_bytes()).hexdigest() for name in files}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"task": "general_point_steps"},
            DataError,
            r"task: unknown task `[a-z_]+`; did you mean `general_points_steps`\?",
        ),
        ({"task": "general_points"}, DataError, "task: `general_points` is not made of a few words"),
        ({"parameters": {"target": 900}}, DataError, "^parameters.target: found `900`; expected"),
        (
            {"architecture": {**SMALL, "hidden_size": 97, "num_attention_heads": 2}},
            ConfigError,
            "^architecture: transformers refuses it: ValueError: The hidden size .97. is not a multiple of the number",
        ),
        (
            {"architecture": {**SMALL, "hidden_size": -8}},
            ConfigError,
            "^architecture.hidden_size: found `-8`; expected 1",
        ),
        (
            {"architecture": {**SMALL, "num_hidden_layers": 0}},
            ConfigError,
            "^architecture.num_hidden_layers: found `0`; ",
        ),
        (
            {"architecture": {**SMALL, "hidden_act": "sillu"}},
            ConfigError,
            r"^architecture.hidden_act: found `sillu`, which transformers does not know; did you mean `silu`\?",
        ),
        (
            {"architecture": {**SMALL, "num_hidden_layers": "x"}},
            ConfigError,
            "^architecture: transformers refuses it: TypeError: Field 'num_hidden_layers' expected int, got str",
        ),
        ({"model_type": "mistrall"}, ConfigError, "model_type: found `mistrall`; "),
        ({"model_type": "clip"}, ConfigError, "model_type: found `clip`; "),
        (
            {"architecture": {"hiden_size": 3}},
            ConfigError,
            "architecture.hiden_size: unknown field; did you mean `hidden",
        ),
        ({"architecture": {"vocab_size": 3}}, ConfigError, "architecture.vocab_size: it follows from the task"),
        ({"architecture": {**SMALL, "hidden_size": 33}}, ConfigError, "architecture: transformers "),
        ({"dtype": "float16"}, ConfigError, "dtype: "),
        ({"layers": 3}, ConfigError, "unknown key `layers`"),
    ],
)
def test_mistakes(changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    """Each is told, and nothing is written."""
    with pytest.raises(error, match=message):
        api.init(config(tmp_path / "out", **changes))
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(made: Path) -> None:
    """A directory that exists is refused."""
    with pytest.raises(RunError, match="exists already; choose another `--out`, or remove it"):
        api.init(config(made))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is one message, and no directory."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainers.initial.write_whole", full)
    with pytest.raises(RunError, match=r"cannot write the checkpoint .*: No space left on device; make room"):
        api.init(config(tmp_path / "out"))
    assert not list(tmp_path.iterdir())
