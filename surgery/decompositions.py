"""Singular value decompositions that are made once: a directory that edits, comparisons and sweeps share.

    DIRECTORY/ab/ab12...-409-0-5d1c....safetensors     U, S and V: 409 leading and 0 trailing triplets
    DIRECTORY/ab/ab12...-values-5d1c....safetensors    S: all singular values

`ab12...` is a digest of the matrix as the arithmetic sees it, `5d1c...` one of all else that the bits of a result
depend on. Whoever finds an entry has the bits that it would have computed: no output depends on what is there.

Processes share the directory without locks: an entry appears whole, by a rename; one that vanishes was not there; two
that are written at once are equal. It can be deleted at any time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from surgery.errors import SurgeryError
from surgery.operand import as_bytes
from surgery.size import parse_size
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import Triplets
from surgery.whole_file import write_whole

FORMAT = 1  # of the entries; and to be raised with any change of the bits that `surgery.spectral.triplets` gives
DEFAULT_LIMIT = 10 * 10**9  # bytes
# Smaller matrices are computed. One thread, float32, head 20 %, milliseconds (compute | digest, store | digest, load):
#     8192x2048  1176 | 35 | 20     512x512  19.6 | 1.0 | 0.4    4096x128  2.8 | 1.2 | 0.5
#     2048x2048   839 | 12 |  6     256x256   4.1 | 0.5 | 0.1    128x128   1.1 | 0.5 | 0.1
#                                  4096x256  10.1 | 2.0 | 1.1
# From here on whatever is never asked for again costs a fifth more at most, and a hit saves nine tenths.
SMALLEST_SIDE = 256
LARGEST_PART = 4  # an entry has at most this part of the limit: it would push out too many others
# A full directory is emptied down to here, so that not every write has to look at all entries.
LOW_WATER = 0.9
# What other processes write is seen at least each time this part of the limit was written: by how much each may exceed.
SCANNED_PART = 16
ABANDONED = 3600.0  # seconds after which an unfinished file is nobody's; writing one takes less than a second

_ENTRY = re.compile(r"[0-9a-f]{64}-(?:(\d+)-\d+|values)-[0-9a-f]{16}\.safetensors")  # other files are left alone
_LEFTOVER = re.compile(rf"\.{_ENTRY.pattern}\.\d+\.\d+\.partial")


class Decompositions(Decomposer):
    """Decompositions from a directory of up to `limit` bytes; what is not there is computed, and kept.

    With `exact` a result has the bits that computing it would give. Without, it is as accurate: it may have been made
    on another kind of processor, and be the leading part of more triplets. The entries that were used least recently
    make room for new ones; without `keep` there are none. Where the directory cannot be written nothing is kept any
    more, and `problem` says why; that is no error.
    """

    def __init__(self, directory: Path, limit: int = DEFAULT_LIMIT, *, exact: bool = True, keep: bool = True) -> None:
        self.directory = directory
        self._keeping = keep
        self.limit = limit
        self._exact = exact
        self._lock = threading.Lock()
        self._size: int | None = None  # bytes of all entries, as far as is known; None before the first scan
        self._unscanned = 0  # bytes written since the last scan

    def triplets(self, W: Tensor, head: int, tail: int = 0) -> Triplets:
        if min(W.shape) < SMALLEST_SIDE:
            return super().triplets(W, head, tail)
        path = self._path(W, f"{head}-{tail}")
        found = self._find(path, head if tail == 0 else None)
        if found is None:
            made = super().triplets(W, head, tail)
            self._keep(path, {"U": made.U, "S": made.S, "V": made.V})
            return made
        k = head + tail
        return Triplets(*(_placed(found[name][..., :k], W.device) for name in ("U", "S", "V")))

    def values(self, W: Tensor) -> Tensor:
        if min(W.shape) < SMALLEST_SIDE:
            return super().values(W)
        path = self._path(W, "values")
        found = self._find(path)
        if found is None:
            S = super().values(W)
            self._keep(path, {"S": S})
            return S
        return _placed(found["S"], W.device)

    def _path(self, W: Tensor, what: str) -> Path:
        content = _digest({f"format {FORMAT}": W.cpu().contiguous()})
        return self.directory / content[:2] / f"{content}-{what}-{_arithmetic(W.device)}.safetensors"

    def _find(self, path: Path, head: int | None = None) -> dict[str, Tensor] | None:
        """The tensors of an entry; unless `exact`, of any with the same or, given `head`, so many leading triplets."""
        candidates = [path] if self._exact else [path, *_others(path, head)]
        return next((found for each in candidates if (found := _read(each)) is not None), None)

    def _keep(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        if self.problem is not None or not self._keeping:
            return
        tensors = {name: X.cpu() for name, X in tensors.items()}
        if sum(X.nbytes for X in tensors.values()) > self.limit // LARGEST_PART:
            return
        content = save(dict(tensors), {"entry": path.name, "blake3": _digest(tensors)})
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._make_room(len(content))
            write_whole(path, content)
        except OSError as error:
            self.problem = (
                f"decompositions are not kept: `{self.directory}` cannot be written: {error.strerror or error}; make "
                "room there, or set `SURGERY_CACHE` to another directory, or to `off`"
            )

    def _make_room(self, nbytes: int) -> None:
        """Account for bytes that are about to be written; if they are too many, delete what was used least recently."""
        with self._lock:
            if (
                self._size is None
                or self._size + nbytes > self.limit
                or self._unscanned + nbytes > self.limit // SCANNED_PART
            ):
                entries = _scan(self.directory)
                self._size = sum(size for _, size, _ in entries)
                self._unscanned = 0
                if self._size + nbytes > self.limit:
                    for _, size, path in entries:
                        if self._size + nbytes <= LOW_WATER * self.limit:
                            break
                        path.unlink(missing_ok=True)
                        self._size -= size
            self._size += nbytes
            self._unscanned += nbytes


def open_decompositions(enabled: bool = True, *, exact: bool = True, expected: int = 0) -> Decomposer:
    """The user's directory of decompositions, or where there is none, or not `enabled`, one that computes them all.

    `exact` as for `Decompositions`. `expected` are the bytes that a run would keep: if they exceed the limit, the last
    ones would push out the first, so nothing is kept. Raises SurgeryError for a `$SURGERY_CACHE_SIZE` that is no size.
    """
    directory = default_directory() if enabled else None
    if directory is None:
        return Decomposer()
    size = os.environ.get("SURGERY_CACHE_SIZE")
    try:
        limit = DEFAULT_LIMIT if size is None else parse_size(size)
    except ValueError as error:
        raise SurgeryError(f"`SURGERY_CACHE_SIZE`: {error}; correct it, or unset it for 10 GB") from error
    return Decompositions(directory, limit, exact=exact, keep=expected <= limit)


def default_directory() -> Path | None:
    """`$SURGERY_CACHE`, else `surgery/decompositions` in `$XDG_CACHE_HOME` or in `~/.cache`.

    None if `$SURGERY_CACHE` is `off`, `0` or empty, or if it is not set and the user has no home directory.
    """
    given = os.environ.get("SURGERY_CACHE")
    if given is not None:
        return None if given.strip().lower() in ("", "0", "off") else Path(given)
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # so says the XDG Base Directory Specification
        try:
            caches = Path.home() / ".cache"
        except RuntimeError:
            return None
    return caches / "surgery" / "decompositions"


def _others(path: Path, head: int | None) -> list[Path]:
    """Entries with the same of the same matrix, whoever made them; given `head`, with as many triplets or more."""
    content = path.name.partition("-")[0]
    same = path.name.rpartition("-")[0]
    found = []
    with suppress(OSError):
        for other in path.parent.glob(f"{content}-*"):
            match = _ENTRY.fullmatch(other.name)
            count = int(match[1]) if match and match[1] else 0
            if match and (other.name.startswith(f"{same}-") if head is None else count >= head):
                found.append((count, other))
    return [other for _, other in sorted(found)]


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of an entry, which now was used most recently; None, and no file, if it is damaged or foreign."""
    try:
        content = path.read_bytes()  # a mapped file that another process cuts short would kill this one
    except OSError:
        return None
    tensors = _unpacked(content, path.name)
    with suppress(OSError):
        if tensors is None:
            path.unlink()
        else:
            os.utime(path)
    return tensors


def _unpacked(content: bytes, name: str) -> dict[str, Tensor] | None:
    """The tensors in the bytes of the entry of this name, or None if these are not what was written."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if header["__metadata__"]["entry"] == name:
            tensors = load(content)
            if header["__metadata__"]["blake3"] == _digest(tensors):
                return tensors
    except (ValueError, LookupError, TypeError, RecursionError, SafetensorError):
        pass
    return None


def _scan(directory: Path) -> list[tuple[float, int, Path]]:
    """Time of last use, bytes and path of each entry, in this order; abandoned files are deleted."""
    entries = []
    for path in directory.glob("??/*"):
        with suppress(OSError):  # it vanished
            status = path.stat()
            if _ENTRY.fullmatch(path.name):
                entries.append((status.st_mtime, status.st_size, path))
            elif _LEFTOVER.fullmatch(path.name) and status.st_mtime < time.time() - ABANDONED:
                path.unlink()
    return sorted(entries)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """BLAKE3 of contiguous CPU tensors: their names, shapes, dtypes and bytes."""
    hasher = blake3()
    for name, X in sorted(tensors.items()):
        hasher.update(f"{name} {tuple(X.shape)} {X.dtype} ".encode())
        hasher.update(as_bytes(X))
    return hasher.hexdigest()


def _arithmetic(device: torch.device) -> str:
    """A digest of what, beside the matrix, decides over the bits of a decomposition that the calling thread makes."""
    deciding = (
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        _processor(),
        torch.get_num_threads(),
        device.type,
        torch.cuda.get_device_name(device) if device.type == "cuda" else "",
    )
    return blake3(repr(deciding).encode()).hexdigest(length=8)


@cache
def _processor() -> str:
    """The model of the processor: LAPACK has kernels for each, and machines may share a home directory."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line
    return platform.processor()


def _placed(X: Tensor, device: torch.device) -> Tensor:
    """In memory of its own, as a computed one would lie."""
    return X.clone(memory_format=torch.contiguous_format).to(device)
