"""The output's files, laid out before a byte of a tensor is written: headers, offsets, index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from surgery.checkpoint import Checkpoint
from surgery.dtypes import DType
from surgery.header import TensorInfo
from surgery.plan import OutputFile

SINGLE_FILE = "model.safetensors"  # the names that transformers and vLLM look for
INDEX_FILE = "model.safetensors.index.json"
_ALIGNMENT = 8  # the format pads headers with spaces to a multiple of this


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that wants a place; `file` is the shard that holds it in the start checkpoint."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str

    @property
    def nbytes(self) -> int:
        """Size of the tensor's bytes."""
        return self.dtype.nbytes(prod(self.shape))


@dataclass(frozen=True, slots=True)
class Layout:
    """The output's shards, the slot of every tensor, and the index (None for a single file)."""

    files: tuple[OutputFile, ...]
    slots: Mapping[str, TensorInfo]
    index: bytes | None
    index_name: str


def lay_out(entries: Sequence[Entry], start: Checkpoint, shard_bytes: int | None) -> Layout:
    """Give every tensor its place.

    Without `shard_bytes` the shards keep the names, the tensors and the order that they have in `start`; with it,
    tensors are packed in that order into shards of at most so many bytes (a larger tensor gets one of its own).
    """
    keep = shard_bytes is None and start.index_name is not None
    groups = _as_in_start(entries) if shard_bytes is None else _packed(entries, shard_bytes)
    metadata = {shard.name: shard.metadata for shard in start.shards}
    files: list[OutputFile] = []
    slots: dict[str, TensorInfo] = {}
    for number, (source_file, group) in enumerate(groups, start=1):
        shard = f"model-{number:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else SINGLE_FILE
        name = source_file if keep else shard
        file, placed = lay_out_file(name, group, metadata.get(source_file, {}))
        files.append(file)
        slots.update((slot.name, slot) for slot in placed)
    indexed = keep or len(files) > 1
    index_name = start.index_name if keep and start.index_name else INDEX_FILE
    return Layout(tuple(files), slots, _index(slots, start) if indexed else None, index_name)


def _as_in_start(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.file, []).append(entry)
    return list(groups.items())


def _packed(entries: Sequence[Entry], shard_bytes: int) -> list[tuple[str, list[Entry]]]:
    groups: list[tuple[str, list[Entry]]] = []
    room = 0
    for entry in entries:
        if not groups or entry.nbytes > room:
            groups.append((entry.file, []))
            room = shard_bytes
        groups[-1][1].append(entry)
        room -= entry.nbytes
    return groups


def lay_out_file(name: str, group: Sequence[Entry], metadata: Mapping[str, str]) -> tuple[OutputFile, list[TensorInfo]]:
    """One safetensors file: all before the bytes of its tensors, and the slot of each, in the order of offsets."""
    # Wide dtypes first, as safetensors itself writes: then every tensor is aligned to its dtype.
    ordered = sorted(group, key=lambda entry: -entry.dtype.bits)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": entry.dtype.name,
            "shape": entry.shape,
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    slots = []
    position = len(head)
    for entry in ordered:
        slots.append(TensorInfo(entry.name, entry.dtype, entry.shape, name, position, entry.nbytes))
        position += entry.nbytes
    return OutputFile(name, head, position), slots


def _index(slots: Mapping[str, TensorInfo], start: Checkpoint) -> bytes:
    total = sum(slot.nbytes for slot in slots.values())
    content = {
        "metadata": {**start.index_metadata, "total_size": total},
        "weight_map": {name: slots[name].file for name in sorted(slots)},
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
