"""Opens adapters by their configuration and header alone, and lays them over the tensors of their base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from surgery.adapters.config import CONFIG, AdapterConfig, read_config
from surgery.adapters.keys import Contents, Factors, find_prefixes, sort_out
from surgery.adapters.refusal import AGAIN, MERGE, OTHER_BASE, UNTIE, Refusal, refused
from surgery.adapters.terms import Adapted, LowRank, Shift
from surgery.errors import CheckpointError
from surgery.header import Header, TensorInfo, listed, read_header, shown

WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter of PEFT's format. `file` is what its tensors' infos call its file, `config_digest` BLAKE3."""

    source: str
    root: Path
    hub_id: str | None
    revision: str | None
    file: str
    config: AdapterConfig
    config_digest: str
    header: Header
    contents: Contents

    @property
    def path(self) -> Path:
        """Its tensors."""
        return self.root / WEIGHTS

    def json(self) -> dict[str, Any]:
        """What it is, as plain data."""
        return {
            "source": self.source,
            "rank": self.config.rank,
            "alpha": self.config.alpha,
            "modules": len(self.contents.factors),
            "whole": list(self.contents.whole),
        }

    def __str__(self) -> str:
        whole = f", {len(self.contents.whole):,} whole tensors" if self.contents.whole else ""
        return f"{self.source}: rank {self.config.rank}, {len(self.contents.factors):,} modules{whole}"


def open_adapter(root: Path, source: str, number: int, hub_id: str | None, revision: str | None) -> Adapter:
    """Open the adapter in a directory, the `number`-th over its base. Raises CheckpointError with all its faults."""
    if not (root / CONFIG).is_file():
        raise CheckpointError(f"`{source}` holds no `{CONFIG}`; expected the directory of a PEFT adapter after `+`")
    if not (root / WEIGHTS).exists():
        pickled = f", but a pickle, `{_PICKLE}`, which can run code" if (root / _PICKLE).exists() else ""
        raise CheckpointError(
            f"`{source}` holds no `{WEIGHTS}`{pickled}; save the adapter with `save_pretrained` of a recent peft"
        )
    config, faults = read_config(root)
    header = read_header(root / WEIGHTS)
    file = f"adapter-{number}/{WEIGHTS}"
    contents = sort_out({name: replace(info, file=file) for name, info in header.tensors.items()})
    if not header.tensors:
        faults.append(Refusal("it holds no tensors", AGAIN))
    if contents.strange:
        told = f"it holds {listed(contents.strange)}; expected `lora_A`, `lora_B` and whole tensors alone"
        faults.append(Refusal(told, MERGE))
    if config is None or faults:
        raise refused(source, faults)
    digest = blake3((root / CONFIG).read_bytes()).hexdigest()
    return Adapter(source, root, hub_id, revision, file, config, digest, header, contents)


def lay_over(
    tensors: Mapping[str, TensorInfo], adapter: Adapter, tied: tuple[str, str | None] | None
) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint, those that the adapter changes with what it does to them.

    `tied` are an embedding and the head that must be equal to it, None where that is not stored. Raises CheckpointError
    with everything that does not fit.
    """
    contents, heads = adapter.contents, list[str]()
    if tied is not None and (adapter.config.tied or tied[1] is None):
        contents, heads = contents.split_heads()
    laying = _Laying(tensors, adapter.config, contents)
    for name, info in contents.whole.items():
        laying.replace(name, info)
    for module, factors in contents.factors.items():
        laying.add(module, factors)
    if tied is not None:
        together = laying.tie if adapter.config.tied else laying.check_tied
        together(heads, *tied)
    faults = [*laying.told(), *laying.faults]
    if faults:
        raise refused(adapter.source, faults)
    return {**tensors, **laying.changed}


class _Laying:
    """The tensors that an adapter changes, as far as it is laid over its base."""

    def __init__(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig, contents: Contents) -> None:
        self.changed: dict[str, TensorInfo] = {}
        self.faults: list[Refusal] = []
        self._tensors = tensors
        self._config = config
        self._old, self._new = find_prefixes(contents.names, tensors)
        self._kinds: dict[Refusal, list[str]] = defaultdict(list)  # faults that many modules have, with where

    def told(self) -> Iterator[Refusal]:
        """The faults that modules have in common, one line each."""
        for kind, places in self._kinds.items():
            yield Refusal(f"{listed(places)}: {kind.text}", kind.remedy)

    def replace(self, name: str, info: TensorInfo) -> None:
        """A tensor is stored whole in the adapter."""
        found = self._find(name)
        if found is None:
            self._kinds[Refusal("the base has no such tensor", OTHER_BASE)].append(name)
        elif found.shape != info.shape:
            told = f"`{shown(name)}` is {list(info.shape)}, and {list(found.shape)} in the base: expected equal shapes"
            self.faults.append(Refusal(told, OTHER_BASE))
        elif self._computable(name, found, info):
            self.changed[found.name] = replace(found, adapted=Adapted(info))

    def add(self, module: str, factors: Factors) -> None:
        """A product is added to a module's weight, and perhaps a vector to its bias."""
        A, B = factors.A, factors.B
        found = self._find(f"{module}.weight")
        if A is None or B is None:
            self._kinds[Refusal(f"`lora_{'A' if A is None else 'B'}` is missing", AGAIN)].append(module)
            return
        if found is None:
            self._kinds[Refusal("the base has no such weight", OTHER_BASE)].append(f"{module}.weight")
            return
        rank = self._config.rank_of(module)
        if len(A.shape) != 2 or len(B.shape) != 2 or A.shape[0] != B.shape[1]:
            self.faults.append(Refusal(f"`{shown(module)}`: {_shapes(A, B)} are no factors of a matrix", AGAIN))
            return
        if A.shape[0] != rank:
            self._kinds[Refusal(f"its rank is {A.shape[0]}, and {rank} in `{CONFIG}`", AGAIN)].append(module)
            return
        transposed = self._turned(found, A, B, embedding=factors.embedding)
        if transposed is None:
            hint = "" if self._config.fan_in_fan_out else " (or `fan_in_fan_out` is wrong)"
            told = f"`{shown(module)}`: {_shapes(A, B)} do not fit the base's weight of {list(found.shape)}{hint}"
            self.faults.append(Refusal(told, OTHER_BASE))
            return
        if self._computable(module, found, A, B):
            self._append(found, LowRank(A, B, self._config.scale_of(module), transposed))
        if factors.bias is not None:
            self._shift(module, factors.bias)

    def tie(self, heads: Sequence[str], embedding: str, head: str | None) -> None:
        """Let the head be what the embedding becomes. PEFT stores one matrix, or one pair of factors, as both."""
        if heads and embedding not in self.changed:
            told = f"it changes {listed(heads)}, and not `{embedding}`, which is to be the same matrix"
            self.faults.append(Refusal(told, AGAIN))
        elif head is not None and embedding in self.changed:
            self.changed[head] = replace(self._tensors[head], adapted=self.changed[embedding].adapted)

    def check_tied(self, heads: Sequence[str], embedding: str, head: str | None) -> None:
        """Find why an embedding and a head that are one matrix would no longer be one."""
        changed = self.changed
        if heads:
            told = f"it changes {listed(heads)} by itself, which in the base is `{embedding}`"
            self.faults.append(Refusal(told, UNTIE))
        if head is not None and (embedding in changed) != (head in changed):
            told = f"it changes one of `{embedding}` and `{head}`, which the base stores both and ties to each other"
            self.faults.append(Refusal(told, UNTIE))
        adapted = changed[embedding].adapted if head is None and embedding in changed else None
        if adapted is not None and adapted.replaced_by is not None:
            told = (
                f"it stores `{embedding}` whole, which the base uses as output head, too; PEFT leaves the head as it "
                "was, and so the two would no longer be one matrix"
            )
            self.faults.append(Refusal(told, UNTIE))

    def _shift(self, module: str, vector: TensorInfo) -> None:
        found = self._find(f"{module}.bias")
        if found is None or found.shape != vector.shape:
            kind = Refusal("it has a bias, and its module in the base none of that length", OTHER_BASE)
            self._kinds[kind].append(module)
        elif self._computable(module, found, vector):
            self._append(found, Shift(vector, self._config.scale_of(module)))

    def _turned(self, found: TensorInfo, A: TensorInfo, B: TensorInfo, *, embedding: bool) -> bool | None:
        """Whether the product is added transposed; None where it fits neither way."""
        plain, turned = (B.shape[0], A.shape[1]) == found.shape, (A.shape[1], B.shape[0]) == found.shape
        if embedding:
            return True if turned else None
        if self._config.fan_in_fan_out:  # peft then clears it for linear layers, which a model may have besides
            return turned if plain or turned else None
        return False if plain else None

    def _append(self, found: TensorInfo, term: LowRank | Shift) -> None:
        before = self.changed.get(found.name, found)
        adapted = before.adapted or Adapted()
        self.changed[found.name] = replace(before, adapted=replace(adapted, terms=(*adapted.terms, term)))

    def _find(self, name: str) -> TensorInfo | None:
        if not name.startswith(self._old):
            return None
        return self._tensors.get(self._new + name.removeprefix(self._old))

    def _computable(self, place: str, *infos: TensorInfo) -> bool:
        strange = next((info for info in infos if not info.dtype.arithmetic), None)
        if strange is not None:
            kind = Refusal(f"`{strange.dtype.name}` cannot be computed with; dequantise it first")
            self._kinds[kind].append(place)
        return strange is None


def _shapes(A: TensorInfo, B: TensorInfo) -> str:
    return f"`lora_A` {list(A.shape)} and `lora_B` {list(B.shape)}"
