"""The index of a sharded checkpoint: which shard holds which tensor.

It is JSON: `{"metadata": {...}, "weight_map": {TENSOR: "model-00001-of-00004.safetensors", ...}}`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgery.errors import CheckpointError
from surgery.header import open_regular, parse_object, shown
from surgery.wording import some

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from surgery.header import Header

MAX_JSON = 100_000_000  # bytes; an index of a million tensors has about that
SUFFIX = ".safetensors"
_REMEDY = "save the checkpoint again, or fetch it again"


@dataclass(frozen=True)
class Index:
    """`weight_map` from tensor to shard file, and the free-form `metadata`."""

    weight_map: Mapping[str, str]
    metadata: Mapping[str, object]

    @property
    def shards(self) -> list[str]:
        """The shard files, sorted by name."""
        return sorted(set(self.weight_map.values()))


def read_json(path: Path, remedy: str = _REMEDY) -> dict[str, Any]:
    """The JSON object in a file of at most MAX_JSON bytes. Raises CheckpointError."""
    descriptor, status = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > MAX_JSON:
            raise CheckpointError(f"`{path}` has {status.st_size} bytes, more than {MAX_JSON}; {remedy}")
        try:
            raw = file.read(MAX_JSON)
        except OSError as error:
            raise CheckpointError(f"`{path}` cannot be read: {error.strerror}") from error
    return parse_object(raw, str(path), remedy)


def read_index(path: Path) -> Index:
    """Read an index; every shard it names is a plain `.safetensors` file name. Raises CheckpointError."""
    table = read_json(path)
    weight_map, metadata = table.get("weight_map"), table.get("metadata") or {}
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"`{path}` has no `weight_map` that maps tensors to shards; {_REMEDY}")
    if not isinstance(metadata, dict):
        raise CheckpointError(f"`{path}`: `metadata` must be an object; {_REMEDY}")
    plain: set[str] = set()
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or shard not in plain:
            if not _is_plain(shard):
                raise CheckpointError(
                    f"`{path}` puts tensor `{shown(tensor)}` in `{shown(shard)}`; expected the plain name of "
                    f"a `{SUFFIX}` file beside the index, without a directory; do not trust this checkpoint"
                )
            plain.add(shard)
    return Index(weight_map, metadata)


def check_present(path: Path, index: Index) -> None:
    """The shards must lie beside their index. Raises CheckpointError."""
    absent = [shard for shard in index.shards if not os.path.lexists(path.parent / shard)]
    if absent:
        raise CheckpointError(f"`{path}` names {some(absent, 'file')} that `{path.parent}` lacks; {_REMEDY}")


def check_index(path: Path, index: Index, headers: Mapping[str, Header]) -> None:
    """Index and shard headers must name the same tensors in the same places. Raises CheckpointError."""
    for shard, header in headers.items():
        for name in header.tensors:
            promised = index.weight_map.get(name)
            if promised != shard:
                where = f"the index puts it in `{promised}`" if promised else "the index does not know it"
                raise CheckpointError(f"`{path.parent / shard}` holds tensor `{shown(name)}`, but {where}; {_REMEDY}")
    missing = [name for name, shard in index.weight_map.items() if name not in headers[shard].tensors]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        shard = index.weight_map[missing[0]]
        raise CheckpointError(
            f"`{path}` promises tensor `{shown(missing[0])}`{more} in `{shard}`, which does not hold it; {_REMEDY}"
        )


def _is_plain(shard: object) -> bool:
    return (
        isinstance(shard, str)
        and shard.endswith(SUFFIX)
        and shard != SUFFIX
        and not set(shard) & set("/\\\0")
        and shard.isprintable()
    )
