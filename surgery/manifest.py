"""`surgery.json`: what an output is made of and how."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from surgery.checkpoint import Checkpoint
from surgery.errors import Fault, VerifyError
from surgery.plan import Plan
from surgery.writer import MANIFEST_FILE

FORMAT = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorEntry(_Part):
    """One tensor: what it is, what was done (`copy`, `cast` or the operations' names), its BLAKE3 digest.

    `read` are the roles that it was made from, each with the tensor's name where that is another than `name`.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    done: tuple[str, ...]
    read: tuple[str, ...]
    blake3: str


class AdapterEntry(_Part):
    """Where an adapter over an input came from; `config` is the digest of its `adapter_config.json`."""

    source: str
    hub_id: str | None
    revision: str | None
    size: int
    config: str


class InputEntry(_Part):
    """Where an input came from; `manifest` is the digest of its own `surgery.json`, if it has one.

    `adapters` were laid over it, in this order.
    """

    source: str
    hub_id: str | None
    revision: str | None
    files: dict[str, int]
    manifest: str | None
    adapters: tuple[AdapterEntry, ...] = ()


class RecipeEntry(_Part):
    """The recipe as it was written, and as it was run: parameters and `--set` filled in."""

    name: str
    text: str
    resolved: dict[str, object]


class ShardEntry(_Part):
    """A tensor file: its size in bytes, and the digest of its header."""

    size: int
    header: str


class Manifest(_Part):
    """Everything needed to check an output and to make it again. It holds no time, so that it is reproducible.

    `report` are figures about an output that is not an edited model: what an adapter keeps.
    """

    format: int
    versions: dict[str, str]
    plan: str
    recipe: RecipeEntry
    inputs: dict[str, InputEntry]
    shards: dict[str, ShardEntry]
    files: dict[str, str]
    tensors: tuple[TensorEntry, ...]
    report: dict[str, Any] | None = None

    def dump(self) -> bytes:
        """JSON with one line for each tensor."""
        head = self.model_dump(mode="json", exclude={"tensors"} if self.report is not None else {"tensors", "report"})
        lines = [json.dumps(entry.model_dump(mode="json"), ensure_ascii=False) for entry in self.tensors]
        opening = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
        rows = ",\n    ".join(lines)
        return f'{opening},\n  "tensors": [\n    {rows}\n  ]\n}}\n'.encode()


def identity(plan_hash: str, inputs: Mapping[str, Checkpoint], device: str) -> dict[str, object]:
    """What must be the same for a run to go on with another's leftovers: plan, inputs to the byte, versions, device.

    An input's files are known by path, inode, size and time; their contents are not read for this.
    """
    files = {
        role: [
            [os.path.realpath(shard.path), shard.path.stat().st_ino, shard.size, shard.mtime_ns]
            for shard in checkpoint.shards
        ]
        for role, checkpoint in inputs.items()
    }
    return {"plan": plan_hash, "inputs": files, "versions": versions(), "device": device}


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    return {name: version(name) for name in ("surgery", "torch", "safetensors")}


def make_manifest(plan: Plan, digests: Mapping[str, str], files: Mapping[str, bytes]) -> Manifest:
    """The manifest of a finished output; `files` are those beside the weights that shall stay as they are."""
    return Manifest(
        format=FORMAT,
        versions=versions(),
        plan=plan.hash,
        recipe=RecipeEntry(name=plan.recipe.name, text=plan.recipe.text, resolved=plan.recipe.canonical()),
        inputs={role: input_entry(checkpoint) for role, checkpoint in plan.inputs.items()},
        shards={file.name: ShardEntry(size=file.size, header=blake3(file.header).hexdigest()) for file in plan.files},
        files={name: blake3(content).hexdigest() for name, content in files.items()},
        tensors=tuple(
            TensorEntry(
                name=tensor.slot.name,
                file=tensor.slot.file,
                dtype=tensor.slot.dtype.name,
                shape=tensor.slot.shape,
                done=tuple(op.op for op in tensor.ops) or (tensor.action,),
                read=tensor.read,
                blake3=digests[tensor.slot.name],
            )
            for tensor in plan.tensors
        ),
    )


def read_manifest(out: Path) -> Manifest:
    """Read the manifest of an output. Raises VerifyError."""
    path = out / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        found = "it is no directory" if out.exists() else "it does not exist"
        found = f"found no `{MANIFEST_FILE}`" if out.is_dir() else found
        hint = "expected a directory that `surgery apply` made, with its manifest"
        raise VerifyError([Fault(f"`{out}`", f"{found}; {hint}")]) from None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error.error_count()} fields are wrong"
        message = f"cannot be read as a manifest ({reason}); it was damaged, or written by another version"
        raise VerifyError([Fault(f"`{path}`", message)]) from error
    if manifest.format != FORMAT:
        message = f"is of format {manifest.format}; this version reads format {FORMAT}"
        raise VerifyError([Fault(f"`{path}`", message)])
    outside = [name for name in (*manifest.files, *manifest.shards) if name.startswith("/") or ".." in name.split("/")]
    if outside:
        message = f"names `{outside[0]}`, which is no file of the output; the manifest was tampered with"
        raise VerifyError([Fault(f"`{path}`", message)])
    return manifest


def is_made_by(out: Path, plan_hash: str) -> bool:
    """Whether a directory is the finished output of the plan with this hash, going by its manifest."""
    try:
        return read_manifest(out).plan == plan_hash
    except VerifyError:
        return False


def is_current(out: Path, plan: Plan) -> bool:
    """Whether a directory is the finished output of this plan, made by these versions from the inputs as they are.

    Inputs are known by path and size, and not to have been touched since the last tensor was written.
    """
    try:
        manifest = read_manifest(out)
        shards = {name: (out / name).stat() for name in manifest.shards}
        touched = [shard.path.stat().st_ctime_ns for model in plan.inputs.values() for shard in model.shards]
    except (VerifyError, OSError):
        return False
    whole = all(shards[name].st_size == shard.size for name, shard in manifest.shards.items())
    inputs = {role: input_entry(checkpoint) for role, checkpoint in plan.inputs.items()}
    same = (manifest.plan, manifest.versions, manifest.inputs) == (plan.hash, versions(), inputs)
    beside = {companion.name: companion.read() for companion in plan.companions}
    if plan.index is not None:
        beside[plan.index_name] = plan.index
    same = same and manifest.files == {name: blake3(content).hexdigest() for name, content in beside.items()}
    return whole and same and max(touched) <= max(status.st_mtime_ns for status in shards.values())


def input_entry(checkpoint: Checkpoint) -> InputEntry:
    """Where a model came from."""
    path = checkpoint.root / MANIFEST_FILE
    known = checkpoint.is_directory and path.is_file()
    of_adapters = {adapter.file for adapter in checkpoint.adapters}
    return InputEntry(
        source=_text(checkpoint.source),
        hub_id=checkpoint.hub_id,
        revision=checkpoint.revision,
        files={shard.name: shard.size for shard in checkpoint.shards if shard.name not in of_adapters},
        manifest=blake3(path.read_bytes()).hexdigest() if known else None,
        adapters=tuple(
            AdapterEntry(
                source=_text(adapter.source),
                hub_id=adapter.hub_id,
                revision=adapter.revision,
                size=adapter.header.size,
                config=adapter.config_digest,
            )
            for adapter in checkpoint.adapters
        ),
    )


def _text(path: str) -> str:
    """A path need not be UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")
