"""Where results lie."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from evalkit.engines.base import Model
from evalkit.errors import ResultsError
from evalkit.settings import Settings
from evalkit.store import Store, label, write_json

SETTINGS = Settings("answers", "sums", 1, {"top": 100}, "test", 0, "fake", {}, {"fake": "1"}, True)
MODEL = Model("models/sft", "0123456789abcdef", None)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "losses"},
        {"task_version": 2},
        {"parameters": {"top": 101}},
        {"part": "train"},
        {"seed": 1},
        {"engine_options": {"dtype": "float32"}},
        {"versions": {"fake": "2"}},
        {"chat": False},
        {"prompt": "{{ a }}"},
        {"chat_template": ""},
        {"attempts": 2},
        {"sampling": {"temperature": 0.1}},
    ],
)
def test_every_setting_counts(change: dict[str, object], tmp_path: Path) -> None:
    """Whatever answers depend on leads to a directory of its own."""
    changed = dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]
    assert Store(tmp_path, changed).directory != Store(tmp_path, SETTINGS).directory


def test_a_checkpoint_is_found_by_its_content(tmp_path: Path) -> None:
    """A renamed checkpoint finds its results; another under the same name does not."""
    store = Store(tmp_path, SETTINGS)
    with store.open(MODEL) as journal:
        journal.put("id/0", {})
    assert store.place(MODEL).name == "sft-0123456789abcdef"
    assert json.loads((store.directory / "settings.json").read_text()) == SETTINGS.json()
    with store.open(dataclasses.replace(MODEL, name="renamed")) as journal:
        assert journal.get("id/0") == {}
    with store.open(dataclasses.replace(MODEL, digest="f" * 16)) as journal:
        assert journal.rows == {}


@pytest.mark.parametrize("name", ["../..", "a/b\\c", "", ".", "-", "\0", "é" * 300, "lm_eval:my/task.yaml", "x" * 300])
def test_labels_are_plain_file_names(name: str) -> None:
    """No name leads out of the directory, hides, or is too long."""
    made = label(name)
    assert made
    assert len(made) <= 60
    assert not set(made) & set("/\\\0: ")
    assert made[0] not in ".-"


def test_write_json_is_all_or_nothing(tmp_path: Path) -> None:
    """A place that cannot be written is one message, and leaves nothing behind."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").write_text("")
    with pytest.raises(ResultsError, match="choose another `--out`"):
        write_json(tmp_path / "taken", {"a": 1})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "taken"]
