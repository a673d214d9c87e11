from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from surgery import hub
from surgery.errors import CheckpointError
from tests.conftest import MakeCheckpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("org/name", ("org/name", None)),
        ("Qwen/Qwen2.5-7B-Instruct", ("Qwen/Qwen2.5-7B-Instruct", None)),
        ("org/name@main", ("org/name", "main")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        (f"org/name@{COMMIT}", ("org/name", COMMIT)),
        ("name", None),
        ("name@main", ("name", "main")),
        ("org/name/sub", None),
        ("org/", None),
        ("/name", None),
        ("./name", None),
        ("../name", None),
        ("~/name", None),
        ("org/name@", None),
        ("org/model.safetensors", None),
        ("org/pytorch_model.bin", None),
        ("org\\name", None),
        ("https://huggingface.co/org/name", None),
        ("here/name", None),
        ("here/name@main", ("here/name", "main")),
    ],
)
def test_parse_hub_id(
    source: str, parsed: tuple[str, str | None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`org/name[@revision]` is a hub id unless it ends like a file, or is like a path here, or one word, without a
    revision.
    """
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.parse_hub_id(source) == parsed


def response(status: int) -> Any:
    """As much of an HTTP response as the client's errors look at, whichever library made it."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("gated", response=response(403)), "accept its terms"),
        (errors.RepositoryNotFoundError("none", response=response(404)), "neither a path here nor a repository"),
        (errors.RevisionNotFoundError("none", response=response(404)), "no revision `v2`"),
        (errors.LocalEntryNotFoundError("none"), "neither a path here nor in the hub's cache"),
        (errors.OfflineModeIsEnabled("offline"), "go online"),
        (errors.HFValidationError("bad name"), "bad name"),
        (errors.HfHubHTTPError("server", response=response(500)), "server"),
        (OSError(28, "No space left on device"), "No space left"),
        (RuntimeError("anything else"), "RuntimeError: anything else"),
    ],
)
def test_every_fault_of_the_hub_is_a_checkpoint_error(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names the repository and what to do."""

    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"org/name") as caught:
        hub.fetch("org/name", "v2")
    assert message in str(caught.value)


def test_what_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and companions at the top level; no pickles, adapters, other formats or subdirectories."""
    files = [
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json",
        "vocab.txt",
        "tokenizer.model", "chat_template.jinja", "modeling_x.py", "README.md", "LICENSE", "qwen.tiktoken",
        "pytorch_model.bin", "model.gguf", "consolidated.safetensors", "original/model.safetensors",
        "adapter_model.safetensors", "onnx/model.onnx", "checkpoint-5/model.safetensors", "tf_model.h5", "optimizer.pt",
    ]  # fmt: skip

    def select(_: str, revision: None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        found = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        assert (revision, list(found)) == (None, files[:11])
        return f"/cache/{COMMIT}"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", select)
    assert hub.fetch("org/name", None) == (Path(f"/cache/{COMMIT}"), COMMIT)


def test_opens_from_the_cache_offline(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """With `HF_HUB_OFFLINE` the hub's own client finds a cached snapshot, and says when there is none."""
    repository = tmp_path / "home/hub/models--org--name"
    make_checkpoint(f"home/hub/models--org--name/snapshots/{COMMIT}", shards=2)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    code = (
        "import sys\nfrom surgery.checkpoint import open_checkpoint\nfrom surgery.errors import CheckpointError\n"
        "found = open_checkpoint('org/name')\nprint(found.hub_id, found.revision, len(found.shards))\n"
        "try: open_checkpoint('org/other')\nexcept CheckpointError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(variable, None)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    first, second, third = run.stdout.splitlines()
    assert first == f"org/name {COMMIT} 2"
    assert "`org/other` is neither a path here nor in the hub's cache" in second
    assert third == "False"
