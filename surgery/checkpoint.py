"""Opens a checkpoint by its index and headers alone: no tensor byte is read.

MODEL is a directory, one `.safetensors` file, or a hub id, and perhaps adapters: `MODEL+ADAPTER`. Whatever cannot be
trusted is refused with a CheckpointError. Links are followed, since the hub's cache is made of them.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from surgery import anatomy as anatomies
from surgery import hub
from surgery.adapters.adapter import Adapter, lay_over, open_adapter
from surgery.adapters.naming import split_source
from surgery.errors import CheckpointError
from surgery.header import read_header, shown
from surgery.index import SUFFIX, check_index, check_present, read_index, read_json
from surgery.tying import is_tied

if TYPE_CHECKING:
    from collections.abc import Mapping

    from surgery.header import Header, TensorInfo
    from surgery.index import Index

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"

_SHARD = re.compile(r"(.+)-\d{5,}-of-(\d{5,})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_CONVERT = (
    "convert it to safetensors, on a machine that trusts it: "
    "`AutoModelForCausalLM.from_pretrained(OLD, dtype='auto').save_pretrained(NEW)` with transformers"
)
_DEQUANTISE = "convert it to safetensors first: `from_pretrained(DIRECTORY, gguf_file=FILE)` with transformers"
_EXPECTED = f"expected a directory, a `{SUFFIX}` file or a hub id `org/name[@revision]`"
_BEHIND = "name it behind its base, `BASE+ADAPTER`: it is added as the base is read"


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file; size and mtime are those seen when its header was read."""

    name: str
    path: Path
    size: int
    mtime_ns: int
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint without reading a tensor.

    `source` is what the user typed, `root` the directory of its files. `tensors` are in the order of shard
    file names, then of offsets. `config` is empty where there is no `config.json`, and for a single file.

    `adapters` are laid over it, the first first: they are in `tensors`, as what is added, and their files are among
    the `shards`. Everything else is the base's. `notes` are what a user should know.
    """

    source: str
    root: Path
    hub_id: str | None
    revision: str | None
    tensors: Mapping[str, TensorInfo]
    shards: tuple[Shard, ...]
    index_name: str | None
    index_metadata: Mapping[str, object]
    config: Mapping[str, object]
    is_directory: bool
    adapters: tuple[Adapter, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def anatomy(self) -> anatomies.Anatomy:
        """Stacks, decoder and groups; its `tied` is this checkpoint's."""
        found = anatomies.anatomy(self.tensors)
        return replace(found, tied=is_tied(self.config, found))

    @property
    def tied(self) -> bool:
        """Whether the output head is the token embedding.

        As `tie_word_embeddings` says, in the configuration or in that of its language model. Where it is
        omitted, the default depends on the model's class (true for Gemma, false for Llama), and the headers
        decide: a generative model with a token embedding and no head is tied.
        """
        return self.anatomy.tied


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a directory, a `.safetensors` file or a hub id `org/name[@revision]`; a path that exists wins.

    Adapters may follow, directories or hub ids, each after a `+`. Raises CheckpointError.
    """
    text = str(source)
    base, *adapters = split_source(text)
    if "\0" in text or not all((base, *adapters)):
        raise CheckpointError(f"`{shown(text)}` is no model; {_EXPECTED}")
    try:
        checkpoint = _open(base)
        for adapter in adapters:
            checkpoint = _with_adapter(checkpoint, adapter)
    except OSError as error:
        raise CheckpointError(f"`{shown(text)}` cannot be opened: {error.strerror or error}") from error
    return replace(checkpoint, source=text)


def _with_adapter(base: Checkpoint, source: str) -> Checkpoint:
    """The checkpoint with one more adapter over it."""
    path = Path(os.path.expanduser(source))  # noqa: PTH111  (as in `_open`)
    parsed = None if os.path.lexists(path) else hub.parse_hub_id(source)
    if not path.is_dir() and parsed is None:
        fault = "is no directory" if os.path.lexists(path) else f"does not exist{_nearby(path)}"
        raise CheckpointError(f"`{shown(source)}` {fault}; expected an adapter's directory or hub id after `+`")
    root, commit = (path, None) if parsed is None else hub.fetch(*parsed, adapter=True)
    adapter = open_adapter(root, source, len(base.adapters) + 1, parsed and parsed[0], commit)
    anatomy = base.anatomy
    tied = (anatomy.embedding, anatomy.head) if base.tied and anatomy.embedding else None
    shard = Shard(adapter.file, adapter.path, adapter.header.size, adapter.header.mtime_ns, adapter.header.metadata)
    notes = _doubts(base, adapter)
    return replace(
        base,
        tensors=lay_over(base.tensors, adapter, tied),
        shards=(*base.shards, shard),
        adapters=(*base.adapters, adapter),
        notes=(*base.notes, *notes),
    )


def _doubts(base: Checkpoint, adapter: Adapter) -> list[str]:
    """Where an adapter plainly names another base; paths on the machine that trained it say nothing here."""
    named = adapter.config.base
    if named is None or "\0" in named:
        return []
    if base.hub_id is not None:
        differs = hub.parse_hub_id(named) is not None and named.partition("@")[0].lower() != base.hub_id.lower()
    else:
        differs = base.is_directory and Path(named).is_dir() and not base.root.samefile(named)
    return [f"`{adapter.source}` names `{shown(named)}` as its base, not `{base.source}`"] if differs else []


def _open(source: str) -> Checkpoint:
    path = Path(os.path.expanduser(source))  # noqa: PTH111  (Path.expanduser raises where there is no such user)
    if path.is_dir():
        return _open_directory(path, source)
    if os.path.lexists(path):
        return _open_file(path, source)
    parsed = hub.parse_hub_id(source)
    if parsed is None:
        forced = f"; for the hub's, write `{source}@main`" if hub.parse_hub_id(f"{source}@main") else ""
        raise CheckpointError(f"`{shown(source)}` does not exist{_nearby(path)}; {_EXPECTED}{forced}")
    root, commit = hub.fetch(*parsed)
    return replace(_open_directory(root, source), hub_id=parsed[0], revision=commit)


def _open_file(path: Path, source: str) -> Checkpoint:
    if path.suffix in _PICKLES:
        raise CheckpointError(f"`{source}` is a pickle, which can run code when it is loaded; {_CONVERT}")
    if path.suffix == ".gguf":
        raise CheckpointError(f"`{source}` is a GGUF file; {_DEQUANTISE}")
    if path.suffix == ".json":
        raise CheckpointError(f"`{source}` is a JSON file; give the directory that holds it")
    if path.suffix != SUFFIX:
        raise CheckpointError(f"`{source}` is a file that does not end in `{SUFFIX}`; {_EXPECTED}")
    return _checkpoint(path.parent, source, {path.name: read_header(path)}, None, None, {})


def _open_directory(root: Path, source: str) -> Checkpoint:
    names = sorted(entry.name for entry in os.scandir(root))
    index_name = _index_name(names, source)
    if index_name is None:
        weights = [_only_file(root, names, source)]
        index = None
    else:
        index = read_index(root / index_name)
        weights = index.shards
        _check_strays(names, weights, index_name, source)
        check_present(root / index_name, index)
    headers = {name: read_header(root / name) for name in weights}
    if index is not None and index_name is not None:
        check_index(root / index_name, index, headers)
    config = read_json(root / CONFIG, "write it anew") if CONFIG in names else {}
    return replace(_checkpoint(root, source, headers, index_name, index, config), is_directory=True)


def _checkpoint(
    root: Path,
    source: str,
    headers: Mapping[str, Header],
    index_name: str | None,
    index: Index | None,
    config: Mapping[str, object],
) -> Checkpoint:
    tensors = {name: info for header in headers.values() for name, info in header.tensors.items()}
    if not tensors:
        raise CheckpointError(f"`{source}` holds no tensors")
    adapter = next((name for name in tensors if ".lora_A." in name or ".lora_embedding_A" in name), None)
    if adapter:
        raise CheckpointError(f"`{source}` is a PEFT adapter (it holds `{shown(adapter)}`), not a model; {_BEHIND}")
    shards = tuple(
        Shard(name, root / name, header.size, header.mtime_ns, header.metadata) for name, header in headers.items()
    )
    metadata = index.metadata if index else {}
    return Checkpoint(source, root, None, None, tensors, shards, index_name, metadata, config, False)


def _index_name(names: list[str], source: str) -> str | None:
    found = [name for name in names if name.endswith(f"{SUFFIX}.index.json")]
    found = [name for name in found if not name.startswith("consolidated")] or found
    if INDEX in found:
        return INDEX
    if len(found) > 1:
        raise CheckpointError(f"`{source}` has several indices: {_list(found)}; leave one, or name it `{INDEX}`")
    return found[0] if found else None


def _only_file(root: Path, names: list[str], source: str) -> str:
    """The one weights file of a directory without an index."""
    found = [name for name in names if name.endswith(SUFFIX)]
    # Mistral's own format, which transformers does not read, beside the one that it does.
    found = [name for name in found if not name.startswith("consolidated")] or found
    if SINGLE in found and "adapter_model.safetensors" in found:
        found.remove("adapter_model.safetensors")
    if "adapter_config.json" in names and SINGLE not in found:
        raise CheckpointError(f"`{source}` is a PEFT adapter, not a model; {_BEHIND}")
    if not found:
        raise CheckpointError(f"`{source}` {_instead(root, names)}")
    if len(found) > 1:
        raise CheckpointError(
            f"`{source}` has {len(found)} `{SUFFIX}` files ({_list(found)}) and no `{INDEX}` that says which "
            "belong to the model; restore the index, or name one file"
        )
    shard = _SHARD.fullmatch(found[0])
    if shard and int(shard[2]) > 1:
        raise CheckpointError(
            f"`{source}` has `{found[0]}`, one of {int(shard[2])} shards, and no `{INDEX}`; fetch the rest"
        )
    return found[0]


def _check_strays(names: list[str], weights: list[str], index_name: str, source: str) -> None:
    """Refuse weights beside the index's that another tool could take for the model's."""
    stems = {match[1] for name in weights if (match := _SHARD.fullmatch(name))}
    for name in names:
        match = _SHARD.fullmatch(name)
        stale = match is not None and match[1] in stems
        if name not in weights and (stale or name == SINGLE):
            raise CheckpointError(
                f"`{source}` holds `{shown(name)}`, which its `{index_name}` does not name: one of the two is left "
                "from another save; remove that one"
            )


def _instead(root: Path, names: list[str]) -> str:
    """What a directory without safetensors files holds, and what to do."""
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return f"holds pickled weights (`{shown(pickles[0])}`), which can run code when they are loaded; {_CONVERT}"
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"holds a GGUF file only (`{shown(gguf[0])}`); {_DEQUANTISE}"
    below = [name for name in names if any((root / name).glob(f"*{SUFFIX}"))]
    if below:
        return f"holds no `{SUFFIX}` file; did you mean `{root / below[-1]}`?"
    return f"holds no `{SUFFIX}` file; expected a Hugging Face checkpoint directory"


def _nearby(path: Path) -> str:
    """The entry beside a path that does not exist whose name is most like its own."""
    try:
        names = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return f" (nor does `{path.parent}`)" if not path.parent.exists() else ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean `{path.parent / close[0]}`?)" if close else ""


def _list(names: list[str]) -> str:
    first = ", ".join(f"`{shown(name)}`" for name in names[:5])
    return f"{first} and {len(names) - 5} more" if len(names) > 5 else first
