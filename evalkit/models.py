"""The models of an evaluation, opened and named by their content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from evalkit.digest import DIGEST, checkpoint_digest
from evalkit.engines.base import Model
from evalkit.errors import EngineError, TaskError
from evalkit.merged import MERGED, merge
from evalkit.store import DIGESTS, label
from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.errors import CheckpointError
from surgery.size import show_size

Note = Callable[[str], object]


def open_models(sources: Sequence[str | Path], engine: str, out: Path, note: Note = lambda _: None) -> list[Model]:
    """Directories and hub ids with the digests of their content; for the engine `openai:URL`, a server's names.

    A model with adapters over it is merged into a checkpoint in `out/models`, which stays for the next run; `note` is
    told. What lies behind a server's name cannot be known: such a digest is that of server and name. Raises
    CheckpointError, EngineError for a checkpoint that is a single file, TaskError for a model that is named twice, and
    what `surgery.apply` raises.
    """
    names = [str(source) for source in sources]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise TaskError(f"found the model `{twice}` twice; name each once")
    return [_open(name, engine, out, note) for name in names]


def check_unchanged(model: Model, out: Path) -> None:
    """Raise CheckpointError where a checkpoint is no longer the one that was opened: a trainer may write over it."""
    if model.path is not None and checkpoint_digest(open_checkpoint(model.path), out / DIGESTS) != model.digest:
        raise CheckpointError(
            f"`{model.name}` was changed after this run had begun; run the same command again, once it is written"
        )


def _open(name: str, engine: str, out: Path, note: Note) -> Model:
    if engine.startswith("openai:"):
        return Model(name, blake3(f"{engine}\0{name}".encode()).hexdigest()[:DIGEST], None)
    checkpoint = open_for_engine(name)
    if checkpoint.adapters:
        checkpoint = _merged(name, checkpoint, out, note)
    return Model(name, checkpoint_digest(checkpoint, out / DIGESTS), checkpoint.root)


def open_for_engine(name: str) -> Checkpoint:
    """A checkpoint that has all that makes a model of weights. Raises CheckpointError, EngineError."""
    checkpoint = open_checkpoint(name)
    if not checkpoint.is_directory:
        raise EngineError(f"`{name}` is a single file; give the directory with its `config.json` and tokenizer")
    if not checkpoint.config:
        raise EngineError(f"`{name}` has no `config.json`, which tells how its weights make a model; add it")
    return checkpoint


def _merged(name: str, checkpoint: Checkpoint, out: Path, note: Note) -> Checkpoint:
    """The checkpoint that a model with adapters is merged into, made now unless it lies there."""
    place = out / MERGED / f"{label(name)}-{blake3(name.encode()).hexdigest()[:8]}"
    for doubt in checkpoint.notes:
        note(doubt)
    if not place.exists():
        size = show_size(sum(info.nbytes for info in checkpoint.tensors.values()))
        note(f"{name}: engines want one checkpoint; merged into `{place}` ({size}), which stays until you delete it")
    return open_checkpoint(merge(name, place))
