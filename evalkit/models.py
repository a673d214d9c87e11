"""The models of an evaluation, opened and named by their content."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from evalkit.digest import DIGEST, checkpoint_digest
from evalkit.engines.base import Model
from evalkit.errors import EngineError, TaskError
from evalkit.merged import MERGED, has_adapters, merge
from evalkit.store import DIGESTS, label
from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.errors import CheckpointError
from surgery.size import show_size

Note = Callable[[str], object]


def open_models(sources: Sequence[str | Path], engine: str, out: Path, note: Note = lambda _: None) -> list[Model]:
    """Directories and hub ids with the digests of their content; for the engine `openai:URL`, a server's names.

    A model with adapters over it has the digest of what it is made of, and `complete` makes it; here adapters that do
    not fit are refused, and `note` is told of those that seem to be another model's. What lies behind a server's name
    cannot be known: such a digest is that of server and name. Raises CheckpointError, EngineError for a checkpoint that
    is a single file, TaskError for a model that is named twice.
    """
    names = [str(source) for source in sources]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise TaskError(f"found the model `{twice}` twice; name each once")
    return [_open(name, engine, out, note) for name in names]


def check_unchanged(model: Model, out: Path) -> None:
    """Raise CheckpointError where a checkpoint is no longer the one that was opened: a trainer may write over it."""
    if model.path is None:
        return
    checkpoint = open_checkpoint(model.name if has_adapters(model.name) else model.path)
    if checkpoint_digest(checkpoint, out / DIGESTS) != model.digest:
        raise CheckpointError(
            f"`{model.name}` was changed after this run had begun; run the same command again, once it is written"
        )


@contextmanager
def complete(model: Model, out: Path, note: Note) -> Iterator[Model]:
    """The model with files that an engine can load, for as long as it is scored.

    Where it has adapters, it is merged into a checkpoint in `out/models`, which is then removed: of many there is one
    at a time on the disk. `note` is told. Raises what `surgery.apply` does.
    """
    if model.path is None or not has_adapters(model.name):
        yield model
        return
    place = out / MERGED / f"{label(model.name)}-{blake3(model.name.encode()).hexdigest()[:8]}"
    size = show_size(sum(info.nbytes for info in open_checkpoint(model.name).tensors.values()))
    note(f"{model.name}: engines want one checkpoint; merged into `{place}` ({size}) while it is scored")
    try:
        yield replace(model, path=merge(model.name, place))
    finally:
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # others' are there
            place.parent.rmdir()


def _open(name: str, engine: str, out: Path, note: Note) -> Model:
    if engine.startswith("openai:"):
        return Model(name, blake3(f"{engine}\0{name}".encode()).hexdigest()[:DIGEST], None)
    checkpoint = open_for_engine(name)
    if checkpoint.adapters:
        for doubt in checkpoint.notes:
            note(doubt)
    return Model(name, checkpoint_digest(checkpoint, out / DIGESTS), checkpoint.root)


def open_for_engine(name: str) -> Checkpoint:
    """A checkpoint that has all that makes a model of weights. Raises CheckpointError, EngineError."""
    checkpoint = open_checkpoint(name)
    if not checkpoint.is_directory:
        raise EngineError(f"`{name}` is a single file; give the directory with its `config.json` and tokenizer")
    if not checkpoint.config:
        raise EngineError(f"`{name}` has no `config.json`, which tells how its weights make a model; add it")
    return checkpoint
