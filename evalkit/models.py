"""The models of an evaluation, opened and named by their content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from evalkit.digest import DIGEST, checkpoint_digest
from evalkit.engines.base import Model
from evalkit.errors import EngineError, TaskError
from evalkit.store import DIGESTS
from surgery.checkpoint import open_checkpoint
from surgery.errors import CheckpointError


def open_models(sources: Sequence[str | Path], engine: str, out: Path) -> list[Model]:
    """Directories and hub ids with the digests of their content; for the engine `openai:URL`, a server's names.

    What lies behind a server's name cannot be known: such a digest is that of server and name. Raises
    CheckpointError, EngineError for a checkpoint that is a single file, TaskError for a model that is named twice.
    """
    names = [str(source) for source in sources]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise TaskError(f"found the model `{twice}` twice; name each once")
    return [_open(name, engine, out) for name in names]


def check_unchanged(model: Model, out: Path) -> None:
    """Raise CheckpointError where a checkpoint is no longer the one that was opened: a trainer may write over it."""
    if model.path is not None and checkpoint_digest(open_checkpoint(model.path), out / DIGESTS) != model.digest:
        raise CheckpointError(
            f"`{model.name}` was changed after this run had begun; run the same command again, once it is written"
        )


def _open(name: str, engine: str, out: Path) -> Model:
    if engine.startswith("openai:"):
        return Model(name, blake3(f"{engine}\0{name}".encode()).hexdigest()[:DIGEST], None)
    checkpoint = open_checkpoint(name)
    if not checkpoint.is_directory:
        raise EngineError(f"`{name}` is a single file; give the directory with its `config.json` and tokenizer")
    if checkpoint.adapters:
        raise EngineError(
            f"`{name}` is a model with an adapter over it, which engines do not read; make one checkpoint of them "
            "first: `surgery apply merge-adapter MODEL+ADAPTER OUT`"
        )
    if not checkpoint.config:
        raise EngineError(f"`{name}` has no `config.json`, which tells how its weights make a model; add it")
    return Model(name, checkpoint_digest(checkpoint, out / DIGESTS), checkpoint.root)
