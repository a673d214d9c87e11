"""Layer stacks, decoder and groups of a checkpoint, from the names and shapes in its headers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from surgery.groups import (
    GROUPS,
    Group,
    is_head,
    is_predictor,
    is_tower,
    layer_group,
    outer_group,
    token_rank,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from surgery.header import TensorInfo

__all__ = ["GROUPS", "Anatomy", "Group", "Stack", "anatomy"]


DEPTH = 16  # leading components that are compared: more than any model nests, and a bound on hostile names


@dataclass(frozen=True, slots=True)
class Stack:
    """Repeated layers `prefix.0` ... `prefix.{layers - 1}`."""

    prefix: str
    layers: int


@dataclass(frozen=True)
class Anatomy:
    """What the names and shapes say about a checkpoint.

    `stacks` by prefix, in the order of the checkpoint; `decoder` is the text decoder's. `embedding` and
    `head` name the token embedding and the output head, where the checkpoint has them; with `tied` the head
    is the embedding, whether or not a head is stored.
    """

    stacks: Mapping[str, Stack]
    decoder: Stack | None
    embedding: str | None
    head: str | None
    tied: bool
    _layers: Mapping[str, tuple[str, int]] = field(repr=False)
    _groups: Mapping[str, Group | None] = field(repr=False)
    _homes: Mapping[str, str | None] = field(repr=False)

    def layer_of(self, name: str) -> tuple[str, int] | None:
        """Stack prefix and layer index of a tensor, or None when it is outside every stack."""
        return self._layers.get(name)

    def group_of(self, name: str) -> Group | None:
        """Group of a tensor, whatever its stack; None when its name and shape do not tell."""
        return self._groups.get(name)

    def home_of(self, name: str) -> str | None:
        """Prefix of the stack that a tensor is in or stands beside, or None when that is not clear.

        `vision_tower.post_layernorm.weight` stands beside `vision_tower.encoder.layers`; the token embedding
        and the head beside the decoder; a projector between the two beside neither.
        """
        return self._homes.get(name)


def anatomy(tensors: Mapping[str, TensorInfo], tied: bool = False) -> Anatomy:
    """Anatomy of a checkpoint; a pure function of names, shapes and sizes.

    A stack is a prefix followed by the integers 0 ... N-1, its layers having modules and at least one matrix
    each; only the first integer of a name counts. Of the stacks whose name holds no word of another tower,
    the decoder is the one that has matrices of the token embedding's width; then one that is no encoder;
    then the closest to the embedding by name; then the largest in bytes.
    """
    parts = _first_integers(tensors)
    stacks = _stacks(tensors, parts)
    outside = [name for name in tensors if name not in parts or parts[name][0] not in stacks]
    embedding = _embedding(tensors, outside)
    decoder = _decoder(tensors, parts, stacks, embedding)
    if decoder is not None:
        decoder = stacks[decoder.prefix] = _without_predictors(decoder, parts)
    head = _head(tensors, outside, embedding, decoder)
    layers = {
        name: (prefix, index)
        for name, (prefix, index, _) in parts.items()
        if prefix in stacks and index < stacks[prefix].layers
    }
    groups = _groups(tensors, parts, layers, stacks, head)
    homes = _homes(tensors, layers, stacks, decoder, {embedding, head})
    return Anatomy(stacks, decoder, embedding, head, tied, layers, groups, homes)


def _first_integers(names: Iterable[str]) -> dict[str, tuple[str, int, str]]:
    """Name -> (prefix, first integer, rest), for the names that have an integer component."""
    parts = {}
    for name in names:
        components = name.split(".")
        for i, component in enumerate(components):
            if not component:  # `.0` and `0` would have the same prefix
                break
            if component.isdecimal() and component.isascii() and str(int(component[:9])) == component:
                parts[name] = (".".join(components[:i]), int(component), ".".join(components[i + 1 :]))
                break
    return parts


def _stacks(tensors: Mapping[str, TensorInfo], parts: Mapping[str, tuple[str, int, str]]) -> dict[str, Stack]:
    indices: dict[str, set[int]] = defaultdict(set)
    with_matrix: dict[str, set[int]] = defaultdict(set)
    for name, (prefix, index, inside) in parts.items():
        indices[prefix].add(index)
        if "." in inside and len(tensors[name].shape) >= 2:  # `0.weight` is a sequential, not a layer
            with_matrix[prefix].add(index)
    return {
        prefix: Stack(prefix, len(found))
        for prefix, found in indices.items()
        if max(found) == len(found) - 1 and with_matrix[prefix] == found
    }


def _embedding(tensors: Mapping[str, TensorInfo], outside: Iterable[str]) -> str | None:
    ranked = [
        (rank, -tensors[name].elements, i, name)
        for i, name in enumerate(outside)
        if len(tensors[name].shape) == 2 and (rank := token_rank(name)) is not None
    ]
    return min(ranked)[3] if ranked else None


def _decoder(
    tensors: Mapping[str, TensorInfo],
    parts: Mapping[str, tuple[str, int, str]],
    stacks: Mapping[str, Stack],
    embedding: str | None,
) -> Stack | None:
    width = tensors[embedding].shape[1] if embedding else None
    size: dict[str, int] = defaultdict(int)
    matching: set[str] = set()
    for name, (prefix, _, _) in parts.items():
        size[prefix] += tensors[name].nbytes
        if len(tensors[name].shape) >= 2 and width in tensors[name].shape:
            matching.add(prefix)
    candidates = [stack for stack in stacks.values() if not is_tower(stack.prefix)]
    return max(
        candidates,
        key=lambda stack: (
            stack.prefix in matching,
            "encoder" not in stack.prefix,
            _shared(stack.prefix, embedding or ""),
            size[stack.prefix],
        ),
        default=None,
    )


def _without_predictors(decoder: Stack, parts: Mapping[str, tuple[str, int, str]]) -> Stack:
    """The decoder without the layers at its end that predict further tokens, which its depth does not count."""
    extra = {i for prefix, i, inside in parts.values() if prefix == decoder.prefix and is_predictor(inside)}
    layers = decoder.layers
    while layers > 1 and layers - 1 in extra:
        layers -= 1
    return Stack(decoder.prefix, layers)


def _head(
    tensors: Mapping[str, TensorInfo], outside: Iterable[str], embedding: str | None, decoder: Stack | None
) -> str | None:
    shape = tensors[embedding].shape if embedding else None
    found = []
    for i, name in enumerate(outside):
        info = tensors[name]
        if name == embedding or len(info.shape) != 2 or is_tower(name):
            continue
        alike = info.shape == shape and outer_group(name, 2) is None  # `output.weight`, `head.weight`
        if is_head(name) or alike:
            found.append((-is_head(name), -_shared(name, decoder.prefix if decoder else ""), i, name))
    return min(found)[3] if found else None


def _groups(
    tensors: Mapping[str, TensorInfo],
    parts: Mapping[str, tuple[str, int, str]],
    layers: Mapping[str, tuple[str, int]],
    stacks: Mapping[str, Stack],
    head: str | None,
) -> dict[str, Group | None]:
    known: dict[tuple[str, int], Group | None] = {}  # a layer's names recur in every layer
    groups: dict[str, Group | None] = {}
    for name, info in tensors.items():
        dimensions = len(info.shape)
        if name in layers:
            key = (parts[name][2], dimensions)
            if key not in known:
                known[key] = layer_group(*key)
            groups[name] = known[key]
        elif name in parts and parts[name][0] in stacks:
            groups[name] = None  # a multi-token-prediction layer
        elif head and name.rpartition(".")[0] == head.rpartition(".")[0]:
            groups[name] = "lm_head"
        else:
            groups[name] = outer_group(name, dimensions)
    return groups


def _homes(
    tensors: Mapping[str, TensorInfo],
    layers: Mapping[str, tuple[str, int]],
    stacks: Mapping[str, Stack],
    decoder: Stack | None,
    text: set[str | None],
) -> dict[str, str | None]:
    homes: dict[str, str | None] = {}
    modules = {name.rpartition(".")[0] for name in text if name}
    only = _only_stack(stacks)
    for name in tensors:
        if name in layers:
            homes[name] = layers[name][0]
        elif decoder and name.rpartition(".")[0] in modules:
            homes[name] = decoder.prefix
        else:
            homes[name] = _nearest(name, only)
    return homes


def _only_stack(stacks: Iterable[str]) -> dict[str, str | None]:
    """Leading path -> the one stack below it, or None where there are several."""
    only: dict[str, str | None] = {}
    for prefix in stacks:
        components = prefix.split(".", DEPTH)[:DEPTH]
        for i in range(len(components) + 1):
            path = ".".join(components[:i])
            only[path] = None if path in only else prefix
    return only


def _nearest(name: str, only: Mapping[str, str | None]) -> str | None:
    """The one stack that shares most leading components with the name; None when several do."""
    path = ".".join(name.split(".", DEPTH)[:DEPTH])
    while path not in only and path:
        path = path.rpartition(".")[0]
    nearest = only.get(path)
    if nearest is None or (is_tower(name) and not is_tower(nearest)):
        return None
    return nearest


def _shared(a: str, b: str) -> int:
    """Number of leading components that two dotted paths share."""
    count = 0
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        count += 1
    return count
