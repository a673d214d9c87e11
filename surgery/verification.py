"""The check that an output still is what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from surgery.errors import CheckpointError, Fault, VerifyError
from surgery.header import Header, read_header
from surgery.manifest import Manifest, ShardEntry, TensorEntry, read_manifest
from surgery.writer import region_digest


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to be as the manifest says."""

    tensors: int
    files: int
    nbytes: int


def verify(out: Path, workers: int) -> Verified:
    """Read an output again and compare every tensor and file with the manifest.

    Raises VerifyError with everything that differs: missing, added and changed tensors and files.
    """
    manifest = read_manifest(out)
    faults = list(_file_faults(out, manifest))
    headers: dict[str, Header] = {}
    for name, shard in manifest.shards.items():
        try:
            headers[name] = read_header(out / name)
        except CheckpointError as error:
            faults.append(Fault("", str(error)))
        else:
            faults += _header_faults(out / name, shard)
    with ThreadPoolExecutor(workers) as pool:
        faults += [
            fault for fault in pool.map(lambda t: _tensor_fault(out, manifest, headers, t), manifest.tensors) if fault
        ]
    known = {entry.name for entry in manifest.tensors}
    added = [info for header in headers.values() for info in header.tensors.values() if info.name not in known]
    faults += [Fault(f"`{info.file}`", f"holds `{info.name}`, which the manifest does not list") for info in added]
    if faults:
        raise VerifyError(faults)
    nbytes = sum(shard.size for shard in manifest.shards.values())
    return Verified(len(manifest.tensors), len(manifest.files) + len(manifest.shards), nbytes)


def _header_faults(path: Path, shard: ShardEntry) -> Iterator[Fault]:
    with path.open("rb") as file:
        length = file.read(8)
        if blake3(length + file.read(int.from_bytes(length, "little"))).hexdigest() != shard.header:
            yield Fault(f"`{path.name}`", "its header was changed")


def _file_faults(out: Path, manifest: Manifest) -> Iterator[Fault]:
    for name, expected in manifest.files.items():
        try:
            found = blake3((out / name).read_bytes()).hexdigest()
        except OSError as error:
            yield Fault(f"`{name}`", f"cannot be read: {error.strerror}")
            continue
        if found != expected:
            yield Fault(f"`{name}`", f"was changed: its digest is {found[:16]}..., expected {expected[:16]}...")
    for path in sorted(out.glob("*.safetensors")):
        if path.name not in manifest.shards:
            yield Fault(f"`{path.name}`", "is not in the manifest; loaders may take it for a part of the model")


def _tensor_fault(out: Path, manifest: Manifest, headers: Mapping[str, Header], entry: TensorEntry) -> Fault | None:
    where = f"`{entry.name}`"
    if entry.file not in headers:
        return None if entry.file in manifest.shards else Fault(where, f"its file `{entry.file}` is not listed")
    info = headers[entry.file].tensors.get(entry.name)
    if info is None:
        return Fault(where, f"is missing from `{entry.file}`")
    if (info.dtype.name, info.shape) != (entry.dtype, entry.shape):
        found, expected = (f"{d} {list(s)}" for d, s in ((info.dtype.name, info.shape), (entry.dtype, entry.shape)))
        return Fault(where, f"is {found}, expected {expected}")
    try:
        with (out / entry.file).open("rb") as file:
            digest = region_digest(file.fileno(), info.start, info.nbytes)
    except OSError as error:
        return Fault(where, f"cannot be read: {error.strerror}")
    if digest != entry.blake3:
        return Fault(where, f"was changed: its digest is {digest[:16]}..., expected {entry.blake3[:16]}...")
    return None
