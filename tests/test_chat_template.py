"""Chat templates of outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import surgery
from surgery.chat_template import read_chat_template
from surgery.checkpoint import open_checkpoint
from surgery.errors import CheckpointError, PlanError, RecipeError
from surgery.recipe import load
from tests.pairs import llama, write
from tests.tiny_tokenizers import save, words


def model(directory: Path, **files: str) -> Path:
    """A model with a tokenizer and these files, by their names without the ending."""
    save(words(["a", "b"]), write(directory, llama(layers=1, vocabulary=2)))
    for name, text in files.items():
        ending = "jinja" if name == "chat_template" and not text.startswith('{"') else "json"
        (directory / f"{name}.{ending}").write_text(text)
    return directory


def recipe(template: str, **output: Any) -> dict[str, Any]:
    """A mean of two models with a chat template."""
    step = {"op": "linear", "models": ["base", "sft"]}
    return {"name": "x", "models": ["base", "sft"], "steps": [step], "output": {"chat_template": template, **output}}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config": "{}"}, None),
        ({"tokenizer_config": '{"chat_template": "{{ 1 }}"}'}, "{{ 1 }}"),
        ({"tokenizer_config": '{"chat_template": "{{ 1 }}"}', "chat_template": "{{ 2 }}"}, "{{ 2 }}"),
        ({"tokenizer_config": '{"chat_template": [{"name": "tool_use", "template": "{{ 1 }}"}]}'}, None),
        ({"tokenizer_config": '{"chat_template": {"default": "{{ 1 }}", "rag": "{{ 2 }}"}}'}, "{{ 1 }}"),
        ({"chat_template": '{"chat_template": "{{ 3 }}"}'}, "{{ 3 }}"),
    ],
)
def test_where_it_is_read(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    """A file of its own counts for more than the tokenizer's settings; of several the default one."""
    assert read_chat_template(open_checkpoint(model(tmp_path / "model", **files))) == expected


def test_a_file_without_text(tmp_path: Path) -> None:
    """Is named; a single file of weights has no template."""
    directory = model(tmp_path / "model")
    (directory / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja` cannot be read as text"):
        read_chat_template(open_checkpoint(directory))
    (weights,) = directory.glob("*.safetensors")
    assert read_chat_template(open_checkpoint(weights)) is None


def test_the_template_of_a_role(tmp_path: Path) -> None:
    """In place of that of `start`, whose other ones go with it; transformers reads it; plans differ by it."""
    base = model(tmp_path / "base", chat_template="{{ 'base' }}")
    sft = model(
        tmp_path / "sft", tokenizer_config='{"chat_template": "{{ 1 }}", "tokenizer_class": "TokenizersBackend"}'
    )
    (sft / "additional_chat_templates").mkdir()
    (sft / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 2 }}")
    (sft / "chat_template.json").write_text('{"chat_template": "{{ 3 }}"}')
    out = surgery.apply(recipe("base"), [base, sft], tmp_path / "out").out
    assert (out / "chat_template.jinja").read_text() == "{{ 'base' }}"
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == "{{ 'base' }}"
    assert not (out / "additional_chat_templates").exists()
    assert not (out / "chat_template.json").exists()
    plans = [surgery.plan(recipe(text), [base, sft]).hash for text in ("base", "most common", "{{ 4 }}")]
    assert plans[0] == surgery.plan(recipe("base"), [base, sft]).hash
    (base / "chat_template.jinja").write_text("{{ 'other' }}")
    assert len({*plans, surgery.plan(recipe("base"), [base, sft]).hash}) == 4
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "base"


def test_of_equally_common_ones_the_first(tmp_path: Path) -> None:
    """In the order of the roles, whatever the directories are called."""
    models = [model(tmp_path / name, chat_template=f"{{{{ '{name}' }}}}\n") for name in ("b", "a")]
    out = surgery.apply(recipe("most common"), models, tmp_path / "out").out
    assert (out / "chat_template.jinja").read_text() == "{{ 'b' }}\n"


def test_faults(tmp_path: Path) -> None:
    """Names that are none, roles and models without a template, and outputs without a tokenizer."""
    with pytest.raises(
        RecipeError, match=r"output\.chat_template: found `bsae`; expected `most common`, a Jinja template"
    ):
        load(recipe("bsae"))
    base, sft = model(tmp_path / "base"), model(tmp_path / "sft")
    for asked, message in [
        ("base", r"recipe output: chat_template: `base` \(.*\) has no chat template; name another role, or write one"),
        ("most common", "recipe output: chat_template: no role has a chat template; leave it out, or write one"),
    ]:
        with pytest.raises(PlanError, match=message):
            surgery.plan(recipe(asked), [base, sft])
    (sft / "tokenizer.json").unlink()
    (base / "tokenizer.json").unlink()
    with pytest.raises(PlanError, match=r"chat_template: `.*sft` has no tokenizer: no `tokenizer\.json`"):
        surgery.plan(recipe("{{ 1 }}"), [base, sft])
