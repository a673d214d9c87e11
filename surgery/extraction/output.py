"""The directory of an adapter on its way: a part for each tensor that was compared, and one file of all at the end.

- `adapter_model.safetensors`, `adapter_config.json`: as PEFT loads them
- `README.md`, and `surgery.json` with the report, which `surgery verify` reads; written last

Until then `OUT.partial` holds a `parts/NUMBER.safetensors` for each tensor: what the adapter stores of it, if anything,
and in its metadata the row of the report. Parts go when the one file is complete, and not before: a run that was killed
goes on from them. So for a while an adapter takes twice its size.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from surgery.adapters.adapter import WEIGHTS
from surgery.adapters.config import CONFIG
from surgery.adapters.keys import PREFIX
from surgery.closing import Closing
from surgery.errors import CheckpointError, OutputError
from surgery.extraction.choice import Choice
from surgery.extraction.report import Row
from surgery.header import Header, read_header
from surgery.layout import Entry, lay_out_file
from surgery.plan import COPY_BYTES, OutputFile
from surgery.unfinished import Kind, Places, Unfinished, missing_room, writing
from surgery.writer import region_digest

ADAPTER = Kind(
    "adapter", "another extraction (other models, ranks or tensors)", lambda names: {CONFIG, WEIGHTS} <= names
)
_PARTS = "parts"
_ROW = "row"

Write = Callable[[memoryview], None]


class Parts(Closing):
    """An adapter on its way to the directory OUT. Raises OutputError as `Unfinished` does."""

    def __init__(
        self, places: Places, identity: Mapping[str, object], *, overwrite: bool = False, fresh: bool = False
    ) -> None:
        self._unfinished = Unfinished(places, ADAPTER, identity, overwrite=overwrite, fresh=fresh)
        self.directory = places.partial
        self._out = places.out
        try:
            with writing(self.directory):
                (self.directory / _PARTS).mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise

    def has(self, name: str, number: int) -> bool:
        """Whether an earlier run has made this part, and it is undamaged."""
        digest = self._unfinished.finished.get(name)
        try:
            return digest is not None and _digest(self._path(number)) == digest
        except OSError:
            return False

    def save(
        self, name: str, number: int, row: Row | None, entries: Sequence[Entry], fill: Callable[[Write], None]
    ) -> None:
        """Keep a part: its row (None: the tensor is equal in both), and tensors, whose bytes `fill` writes in order."""
        file, _ = lay_out_file(WEIGHTS, entries, {_ROW: json.dumps(row and row.dump())})
        path = self._path(number)
        with writing(path):
            with path.open("wb") as part:
                part.write(file.header)

                def write(data: memoryview) -> None:
                    with writing(path):
                        part.write(data)

                fill(write)
            digest = _digest(path)
        self._unfinished.record(name, digest)

    def check_room(self, nbytes: int) -> None:
        """Raises OutputError where the disk has no room for parts of so many bytes and the file of them all."""
        missing = missing_room(2 * nbytes, [self.directory])
        if missing > 0:
            raise OutputError(
                f"the disk of `{self._out}` is too small: until it is complete the adapter takes twice its size, "
                f"{2 * nbytes:,} bytes, {missing:,} more than are free; make room, choose an OUT on another disk, or "
                "leave out what is known to be equal (`--exclude`)"
            )

    def header(self, number: int) -> Header:
        """What a part holds. Its row is in the metadata."""
        return read_header(self._path(number))

    def assemble(self, count: int) -> tuple[OutputFile, dict[str, tuple[Entry, str]]]:
        """All parts in one file, and each of its tensors with its digest. Raises CheckpointError, OutputError."""
        headers = {number: self.header(number) for number in range(count)}
        origins = {
            name: (self._path(number), info)
            for number, header in headers.items()
            for name, info in header.tensors.items()
        }
        entries = [Entry(info.name, info.dtype, info.shape, WEIGHTS) for _, info in origins.values()]
        file, slots = lay_out_file(WEIGHTS, entries, {})
        self.check_room(file.size)
        placed = {}
        with writing(self.directory / WEIGHTS), (self.directory / WEIGHTS).open("wb") as out:
            out.write(file.header)
            for slot in slots:
                path, info = origins[slot.name]
                digest = _append(path, info.start, info.nbytes, out.write)
                placed[slot.name] = Entry(slot.name, slot.dtype, slot.shape, WEIGHTS), digest
        return file, placed

    def publish(self, files: Mapping[str, bytes], *, durable: bool = False) -> None:
        """Add the other files, the last one last, and give the output its name."""
        with writing(self.directory):
            for name, content in files.items():
                (self.directory / name).write_bytes(content)
            shutil.rmtree(self.directory / _PARTS)
        self._unfinished.publish(durable=durable)

    def drop(self) -> None:
        """Delete what is made: there is nothing for an adapter to store."""
        self._unfinished.drop()

    def close(self) -> None:
        """Release the lock; what is made stays."""
        self._unfinished.close()

    def _path(self, number: int) -> Path:
        return self.directory / _PARTS / f"{number:06}.safetensors"


def row_of(header: Header) -> Row | None:
    """The row of the report that a part has, or None where the tensor is equal in both models."""
    fields = json.loads(header.metadata[_ROW])
    return None if fields is None else Row.load(fields)


def make_config(choice: Choice, rows: Sequence[Row]) -> dict[str, Any]:
    """`adapter_config.json`: scales of 1, ranks where they differ from the most frequent one."""
    ranks = {_module(row.name): row.rank for row in rows if row.kept == "factors"}
    counts = Counter(ranks.values())
    rank = max(counts, key=lambda each: (counts[each], each), default=1)
    # The longest names first: a pattern means all modules whose names end like it, and the first one counts.
    others = {name: ranks[name] for name in sorted(ranks, key=lambda name: (-len(name), name)) if ranks[name] != rank}
    whole = {row.name for row in rows if row.kept == "whole"}
    stored = [target for target in choice.targets if target.name in whole]
    saved = dict.fromkeys(_module(name) for target in stored for name in target.stored_as)
    tied = {"ensure_weight_tying": True} if any(target.twin for target in stored) else {}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": choice.base.hub_id or choice.base.source,
        "revision": choice.base.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _target_modules(list(ranks), [_module(name) for name in choice.matrices]),
        "modules_to_save": list(saved) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": False,
        **tied,
    }


def _target_modules(chosen: Sequence[str], matrices: Sequence[str]) -> list[str]:
    """The last components of their names, where those mean no other modules; else the whole names."""
    last = {module.rsplit(".", 1)[-1] for module in chosen}
    meant = {module for module in matrices if module.rsplit(".", 1)[-1] in last}
    return sorted(last) if meant == set(chosen) else sorted(chosen)


def factor_names(tensor: str) -> tuple[str, str]:
    """PEFT's names of A and B for a weight."""
    return tuple(f"{PREFIX}{_module(tensor)}.lora_{factor}.weight" for factor in "AB")  # type: ignore[return-value]


def whole_name(tensor: str) -> str:
    """PEFT's name of a tensor that is stored whole."""
    return f"{PREFIX}{tensor}"


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return region_digest(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _append(path: Path, start: int, nbytes: int, write: Callable[[bytes], object]) -> str:
    """Copy a region of a file; its BLAKE3 digest."""
    hasher = blake3()
    with path.open("rb") as file:
        file.seek(start)
        for chunk in _chunks(file.read, nbytes):
            if not chunk:
                raise CheckpointError(f"`{path}` was cut short meanwhile; run the same command again")
            hasher.update(chunk)
            write(chunk)
    return hasher.hexdigest()


def _chunks(read: Callable[[int], bytes], nbytes: int) -> Iterator[bytes]:
    while nbytes:
        chunk = read(min(nbytes, COPY_BYTES))
        yield chunk
        nbytes -= len(chunk)
