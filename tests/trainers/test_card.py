"""The card of a trained checkpoint."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML

from tests.tiny_models import save_tiny
from trainers.card import make_card
from trainers.config import SftConfig
from trainers.loading import load
from trainers.parent import open_parent


def test_card(tmp_path: Path) -> None:
    """Front matter that the hub reads, the license of the parent, and the configuration that was changed."""
    model = save_tiny(tmp_path / "parent")
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    given = {"model": str(model), "out": str(tmp_path / "out"), "data": {"task": "general_points"}, "batch_size": 3}
    card = make_card(open_parent(str(model)), "sft", load(SftConfig, given), 8)
    _, front, body = card.split("---\n", 2)
    assert YAML(typ="safe").load(front) == {
        "license": "mit", "library_name": "transformers", "tags": ["sft", "surgery"],
    }  # fmt: skip
    assert "# parent, supervised fine-tuning, step 8" in body
    settings = YAML(typ="safe").load(body.split("```yaml\n")[1].split("```")[0])
    assert settings == {"data": {"task": "general_points"}, "batch_size": 3}
    assert str(tmp_path) not in card
