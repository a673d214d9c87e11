"""The files beside the weights: which are taken, from whom, and what changes in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import surgery
from tests.pairs import LLAMA_CONFIG, files, llama, near, write

STEP = {"op": "linear", "models": ["base", "sft"]}
TAKEN = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "additional_chat_templates/rag.jinja", "preprocessor_config.json", "processor_config.json",
    "modeling_special.py", "LICENSE",
)  # fmt: skip
LEFT = (
    "optimizer.pt",
    "trainer_state.json",
    "training_args.bin",
    "pytorch_model.bin",
    "notes.md",
    "events.out",
    "a/b.py",
)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two models with everything that a training run leaves beside the weights."""
    base = llama(layers=1)
    models = write(tmp_path / "base", base), write(tmp_path / "sft", near(base))
    for model in models:
        for name in TAKEN[1:] + LEFT:
            path = model / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{model.name} {name}")
    return models


def apply(pair: tuple[Path, Path], out: Path, config: dict[str, Any] | None = None, **output: str) -> dict[str, bytes]:
    """The files of an output, but for the weights and what is ours."""
    if config is not None:
        (pair[1] / "config.json").write_text(json.dumps(config))
    surgery.apply({"name": "r", "models": ["base", "sft"], "steps": [STEP], "output": output}, pair, out)
    ours = ("model.safetensors", "surgery.json", "README.md")
    return {name: content for name, content in files(out).items() if name not in ours}


def test_what_a_loader_needs_comes_from_the_start(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Config, tokenizer, templates, processors, code and license, unchanged; training leftovers stay behind."""
    found = apply(pair, tmp_path / "out")
    assert found.keys() == set(TAKEN)
    assert all(content == (pair[1] / name).read_bytes() for name, content in found.items())


def test_the_tokenizer_may_come_from_another_role(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """`output.tokenizer: base` takes tokenizer and chat templates from there, and nothing else."""
    found = apply(pair, tmp_path / "out", tokenizer="base")
    of_base = {name for name, content in found.items() if content.startswith(b"base ")}
    assert of_base == {
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "merges.txt", "chat_template.jinja", "additional_chat_templates/rag.jinja",
    }  # fmt: skip


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_configs_dtype_follows_the_output(pair: tuple[Path, Path], tmp_path: Path, key: str) -> None:
    """Nested configs too; everything else in the config stays."""
    config = {"model_type": "vlm", key: "bfloat16", "text_config": {key: "bfloat16", "x": [1]}, "rope": {key: "a"}}
    found = json.loads(apply(pair, tmp_path / "out", config, dtype="float32")["config.json"])
    assert found == {**config, key: "float32", "text_config": {key: "float32", "x": [1]}}


def test_a_config_without_dtype_gets_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """So that `from_pretrained(dtype="auto")` loads what is stored."""
    config = {key: value for key, value in LLAMA_CONFIG.items() if key != "torch_dtype"}
    assert json.loads(apply(pair, tmp_path / "out", config, dtype="float16")["config.json"])["dtype"] == "float16"


def test_a_single_file_has_no_companions(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Given a file, nothing beside it is taken: only a directory lends its own."""
    single = [path / "model.safetensors" for path in pair]
    surgery.apply({"name": "r", "models": ["base", "sft"], "steps": [STEP]}, single, tmp_path / "out")
    assert files(tmp_path / "out").keys() == {"README.md", "model.safetensors", "surgery.json"}
