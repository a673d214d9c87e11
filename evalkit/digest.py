"""Which checkpoint it is, by content: what results are kept under."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blake3 import blake3

from evalkit.store import write_json
from surgery.adapters.config import CONFIG
from surgery.checkpoint import Checkpoint
from surgery.companions import companions
from surgery.errors import CheckpointError

DIGEST = 16  # hexadecimal digits that names and results carry: 64 bits
_NOT_BEHAVIOUR = ("LICENSE", "NOTICE", "USE_POLICY")


def checkpoint_digest(checkpoint: Checkpoint, cache: Path | None = None) -> str:
    """A digest of everything that a model's answers depend on: weights, configs, tokenizer, template, code.

    Reading 15 GB takes seconds, so `cache`, a JSON file, remembers the digests of files that have not been touched
    since: same inode, size, and times of modification and of change, the last of which no program can set back.
    Without a `cache` they are read. Raises CheckpointError, and ResultsError where the cache cannot be written.
    """
    files = _files(checkpoint)
    known = {} if cache is None else _read(cache)
    place = "+".join(str(root.resolve()) for root in (checkpoint.root, *(each.root for each in checkpoint.adapters)))
    try:
        stamps = {name: _stamp(path) for name, path in files.items()}
        entry = known.get(place)
        if isinstance(entry, dict) and entry.get("files") == stamps and isinstance(entry.get("digest"), str):
            return str(entry["digest"])
        whole = blake3()
        for name, path in files.items():
            content = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
            whole.update(f"{name}\0{content}\n".encode())
    except OSError as error:
        raise CheckpointError(f"cannot read `{error.filename or checkpoint.source}`: {error.strerror}") from error
    digest = whole.hexdigest()[:DIGEST]
    if cache is not None:
        write_json(cache, {**known, place: {"files": stamps, "digest": digest}})
    return digest


def _files(checkpoint: Checkpoint) -> dict[str, Path]:
    """By name, in the order of names; those of adapters, too."""
    found = {shard.name: shard.path for shard in checkpoint.shards}
    found.update((f"{Path(each.file).parent}/{CONFIG}", each.root / CONFIG) for each in checkpoint.adapters)
    for companion in companions(checkpoint, checkpoint, None):
        if companion.path is not None and not companion.name.startswith(_NOT_BEHAVIOUR):
            found[companion.name] = companion.path
    return dict(sorted(found.items()))


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read(cache: Path) -> dict[str, Any]:
    try:
        content = json.loads(cache.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
