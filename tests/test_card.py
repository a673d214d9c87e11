"""The model card is one that the hub's own library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import surgery
from tests.pairs import llama, near, write

RECIPE = """\
name: average
summary: The mean of both.
models: [base, sft]
steps:
  - {op: linear, models: [base, sft]}  # equal weights
"""


def test_front_matter_names_base_models_tags_and_license(tmp_path: Path) -> None:
    """As huggingface_hub reads it; the license is the one that the start's own card states."""
    base = llama(layers=1)
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", near(base))]
    (models[1] / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\nlicense: other\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    out = surgery.apply(tmp_path / "recipe.yaml", models, tmp_path / "out").out
    card = ModelCard.load(out / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0"
    assert "base_model" not in data  # local directories are not repositories of the hub
    assert data["tags"] == ["merge", "surgery"]
    assert RECIPE.strip() in card.text


def test_hub_ids_are_the_base_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that came from the hub are linked, with their revisions."""
    base = llama(layers=1)
    write(tmp_path / "snapshot", base)
    monkeypatch.setattr("surgery.hub.fetch", lambda *_: (tmp_path / "snapshot", "abc123"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    out = surgery.apply(tmp_path / "recipe.yaml", ["org/base@main", tmp_path / "snapshot"], tmp_path / "out").out
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict()["base_model"] == ["org/base"]
    assert "| `base` | [org/base](https://huggingface.co/org/base) | abc123 |" in card.text


def test_a_start_without_a_card_gives_no_license(tmp_path: Path) -> None:
    """No license is claimed that was not stated."""
    base = llama(layers=1)
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", near(base))]
    (models[1] / "README.md").write_text("license: mit\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    out = surgery.apply(tmp_path / "recipe.yaml", models, tmp_path / "out").out
    assert "license" not in ModelCard.load(out / "README.md").data.to_dict()
