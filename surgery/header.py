"""Reads the header of a safetensors file, and refuses whatever the format forbids.

    file    8 bytes: n, little endian | n bytes: JSON, UTF-8 | tensor bytes
    JSON    {"__metadata__": {str: str}, NAME: {"dtype": D, "shape": S, "data_offsets": [begin, end]}, ...}

Offsets count from the first tensor byte. The tensors cover the rest of the file without overlap or gap.

Source: the safetensors README, section Format. Stricter than the safetensors library in four points, none
of which a real writer meets: names (and keys) that occur twice, fields of an entry other than the three,
entries that are not objects, and tensor names that hold NUL.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgery.dtypes import DTYPES, DType
from surgery.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from surgery.adapters.terms import Adapted

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
MAX_SIZE = 2**64  # the library counts in unsigned 64-bit integers
METADATA = "__metadata__"
SHOWN = 160  # characters of a value in a message: longer than any tensor's name that was seen

_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_POINTER = b"version "  # the first bytes of what a clone without Git LFS holds; as a length more than any header's
_DAMAGED = "the file is damaged or not a safetensors file; fetch or save it again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: plain file name, absolute byte offset in that file, length in bytes.

    `adapted` is what adapters of the checkpoint add to it as it is read, if any.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    start: int
    nbytes: int
    adapted: Adapted | None = None

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a 0-D tensor."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def stored(self) -> TensorInfo:
        """The tensor whose bytes are read: itself, or what an adapter puts in its place."""
        return self if self.adapted is None or self.adapted.replaced_by is None else self.adapted.replaced_by

    @property
    def factors(self) -> tuple[TensorInfo, ...]:
        """What is read beside it, once, for what adapters add."""
        return () if self.adapted is None else self.adapted.factors


@dataclass(frozen=True)
class Header:
    """The tensors of one file in offset order, its `__metadata__`, its size in bytes and modification time."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    size: int
    mtime_ns: int


def read_header(path: Path) -> Header:
    """Header of one safetensors file; links are followed. Raises CheckpointError, with file and tensor."""
    descriptor, status = open_regular(path)
    try:
        with os.fdopen(descriptor, "rb") as file:
            raw = _header_bytes(path, file.read(8), status.st_size, file.read)
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}") from error
    start = 8 + len(raw)
    entries = parse_object(raw, str(path), _DAMAGED)
    metadata = _metadata(path, entries.pop(METADATA, None))
    tensors = [_tensor(path, name, entry, start) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.start, info.nbytes))
    _check_cover(path, tensors, start, status.st_size)
    return Header({info.name: info for info in tensors}, metadata, status.st_size, status.st_mtime_ns)


def open_regular(path: Path) -> tuple[int, os.stat_result]:
    """Descriptor and status of a regular file, opened for reading; never waits for a FIFO or a device.

    Raises CheckpointError.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: that alone can rewind a tape
            raise CheckpointError(f"`{path}` is not a regular file; expected one, or a link to one")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"`{path}` does not exist, or is a link to a file that does not") from error
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise CheckpointError(f"`{path}` cannot be opened: {_reason(error)}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"`{path}` is not a regular file; expected one, or a link to one")
    return descriptor, status


def parse_object(raw: bytes, where: str, remedy: str) -> dict[str, Any]:
    """The JSON object in `raw`, with no key twice and no lone surrogate. Raises CheckpointError."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_int=_integer)
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise CheckpointError(f"the JSON of `{where}` is nested too deeply; {remedy}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the JSON of `{where}` is not UTF-8 (byte {error.start}); {remedy}") from error
    except UnicodeEncodeError as error:
        raise CheckpointError(f"the JSON of `{where}` holds half of a surrogate pair; {remedy}") from error
    except ValueError as error:
        raise CheckpointError(f"the JSON of `{where}` cannot be read: {error}; {remedy}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"`{where}` holds a JSON {type(value).__name__}, expected an object; {remedy}")
    return value


def shown(value: object) -> str:
    """A name or value out of a file, fit for a message: printable, short, nested but a little."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def listed(names: Iterable[str]) -> str:
    """The first name out of a file, and how many more there are."""
    first, *more = names
    return f"`{shown(first)}`" + (f" and {len(more):,} more" if more else "")


def _header_bytes(path: Path, prefix: bytes, size: int, read: Any) -> bytes:
    if size < 8 or len(prefix) < 8:
        raise CheckpointError(f"`{path}` has {size} bytes, too few for a safetensors file; fetch or save it again")
    if prefix[:4] == b"GGUF":
        raise CheckpointError(f"`{path}` is a GGUF file; convert it to safetensors first (transformers: `gguf_file=`)")
    if prefix == _POINTER:
        raise CheckpointError(f"`{path}` is what Git LFS has in place of the file; fetch it: `git lfs pull`")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise CheckpointError(f"`{path}` claims a header of {length} bytes, more than {MAX_HEADER}; {_DAMAGED}")
    if length > size - 8:
        raise CheckpointError(f"`{path}` claims a header of {length} bytes but has {size} in all; {_DAMAGED}")
    raw: bytes = read(length)
    if len(raw) < length:
        raise CheckpointError(f"`{path}` became shorter while its header was read")
    return raw


def _metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError(f"`{path}`: `{METADATA}` must map strings to strings; {_DAMAGED}")
    return value


def _tensor(path: Path, name: str, entry: object, data: int) -> TensorInfo:
    if "\0" in name:
        raise _wrong(path, name, "its name holds a NUL character")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _wrong(path, name, "expected an entry with exactly `dtype`, `shape` and `data_offsets`")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _wrong(path, name, f"found dtype `{shown(entry['dtype'])}`, expected one of {', '.join(DTYPES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _sizes(shape):
        raise _wrong(path, name, f"found shape `{shown(shape)}`, expected a list of integers from 0 to 2^64 - 1")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _wrong(path, name, f"found data_offsets `{shown(offsets)}`, expected [begin, end], begin <= end")
    begin, end = offsets
    info = TensorInfo(name, dtype, tuple(shape), path.name, data + begin, end - begin)
    bits = _bits(path, info)
    if bits != info.nbytes * 8:
        need = f"{info.shape} of {dtype.name} takes {bits // 8} bytes"
        raise _wrong(path, name, f"{need}, but its data_offsets [{begin}, {end}] hold {info.nbytes}")
    return info


def _bits(path: Path, info: TensorInfo) -> int:
    count = 1
    for length in info.shape:  # not `elements`: an overflow must not be hidden by a later zero
        count *= length
        if count >= MAX_SIZE:
            raise _wrong(path, info.name, f"shape {shown(info.shape)} has more than 2^64 elements")
    bits = count * info.dtype.bits
    if bits >= MAX_SIZE:
        raise _wrong(path, info.name, f"shape {shown(info.shape)} is larger than any file")
    if bits % 8:
        raise _wrong(path, info.name, f"{count} elements of {info.dtype.name} do not fill whole bytes")
    return bits


def _check_cover(path: Path, tensors: list[TensorInfo], start: int, size: int) -> None:
    end = start
    for info in tensors:
        if info.start != end:
            fault = "overlaps the tensor before it" if info.start < end else "leaves a gap before it"
            found = f"it begins at byte {info.start - start} where {end - start} is expected"
            raise _wrong(path, info.name, f"{fault}: {found}")
        end += info.nbytes
        if end > size:
            raise _wrong(path, info.name, f"it ends at byte {end} of a file of {size}")
    if end != size:
        raise CheckpointError(f"`{path}` has {size - end} bytes that belong to no tensor; {_DAMAGED}")


def _sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < MAX_SIZE for n in values)


def _wrong(path: Path, name: str, fault: str) -> CheckpointError:
    return CheckpointError(f"`{path}`: tensor `{shown(name)}`: {fault}; {_DAMAGED}")


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"`{shown(twice)}` occurs twice")
    return table


def _integer(text: str) -> int | float:
    return int(text) if text != "-0" else -0.0  # as the library has it: minus zero is no size
