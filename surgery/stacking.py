"""Which tensors the steps work on: those of the output before the first step, and what each role has for them.

Without `slices` both are as they are stored. With them, the layers of the text decoder are those that the slices name,
renumbered: a slice `{base: 0-15, sft: 8-23}` makes sixteen layers, which begin as layers 0-15 of `base`, and where a
step reads `sft` it gets layers 8-23. Everything else in this package only sees the output's names.

After mergekit's `slices` (Goddard et al. 2024, arXiv 2403.13257). Different from there: ranges include their end, depth
is that of the whole output and not of each slice, and all tensors outside the layers are of one role.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from surgery.anatomy import Stack
from surgery.blocks import Block, decoders, place
from surgery.checkpoint import Checkpoint
from surgery.config import LayerOrigin, restack
from surgery.conflicts import Conflicts
from surgery.dtypes import DType
from surgery.header import TensorInfo
from surgery.plan import Source
from surgery.recipe import Recipe, Slice
from surgery.wording import numbered, quoted

_NUMBER = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_ONE_ARCHITECTURE = "expected checkpoints of one architecture"


@dataclass(frozen=True)
class Stacking:
    """What is edited, and what the steps read.

    `start` is the checkpoint that the steps edit as it would be stored: the output's names and config. `origins` says
    where each of its tensors is, `views` what each role has for it: by the output's names, infos of the role's own
    files. Without slices there are no `blocks`. `shard_bytes` is the size of the files where the recipe says `keep`.
    """

    start: Checkpoint
    origins: Mapping[str, Source]
    views: Mapping[str, Mapping[str, TensorInfo]]
    blocks: tuple[Block, ...] = ()
    shard_bytes: int | None = None
    remarks: tuple[str, ...] = ()

    def block_of(self, name: str) -> Block | None:
        """The slice that a tensor of the output is in, if any."""
        place, decoder = self.start.anatomy.layer_of(name), self.start.anatomy.decoder
        if not self.blocks or place is None or decoder is None or place[0] != decoder.prefix:
            return None
        return self._by_layer[place[1]]

    @cached_property
    def _by_layer(self) -> list[Block]:
        return [block for block in self.blocks for _ in block.outcome]


def stack(recipe: Recipe, inputs: Mapping[str, Checkpoint], conflicts: Conflicts) -> Stacking:
    """The tensors that a recipe's steps work on. Adds to `conflicts` what is wrong with its slices.

    Raises PlanError where that leaves nothing to go on with.
    """
    if recipe.slices is not None:
        return _Stacker(recipe, recipe.slices, inputs, conflicts).stack()
    start = inputs[recipe.start]
    origins = {name: Source(recipe.start, info) for name, info in start.tensors.items()}
    return Stacking(start, origins, {role: checkpoint.tensors for role, checkpoint in inputs.items()})


class _Stacker:
    def __init__(
        self, recipe: Recipe, slices: Sequence[Slice], inputs: Mapping[str, Checkpoint], conflicts: Conflicts
    ) -> None:
        self.inputs = inputs
        self.conflicts = conflicts
        self.role = recipe.start
        self.start = inputs[recipe.start]
        self.edited = bool(recipe.steps)
        self.casts = recipe.output.dtype != "keep"
        self.decoders = decoders(recipe, inputs, conflicts)
        self.prefix = self.decoders[self.role].prefix
        self.blocks = place(slices, self.decoders, conflicts)
        self.depth = self.blocks[-1].outcome.stop
        self.parts = {role: _parts(self.inputs[role], decoder) for role, decoder in self.decoders.items()}

    def stack(self) -> Stacking:
        views = {role: self._view(role) for role in self.inputs}
        origins = dict(self._origins())
        remarks: list[str] = []
        metadata = dict(self.start.index_metadata)
        if "total_parameters" in metadata:  # transformers 5 counts them
            metadata["total_parameters"] = sum(source.info.elements for source in origins.values())
        file = self.start.shards[0].name  # any of them: the layout makes files of its own
        start = replace(
            self.start,
            tensors={name: replace(source.info, name=name, file=file) for name, source in origins.items()},
            config=self._config(remarks),
            index_metadata=metadata,
        )
        self._compare()
        remarks += self._nothing_dropped()
        if start.anatomy.decoder != Stack(self.prefix, self.depth):  # what decides is in surgery.anatomy
            self.conflicts.slices(
                f"`{self.prefix}` with {numbered(self.depth, 'layer')} is not recognised as the text decoder any more"
            )
            self.conflicts.raise_all()
        return Stacking(start, origins, views, self.blocks, self._shard_bytes(), tuple(remarks))

    def _view(self, role: str) -> dict[str, TensorInfo]:
        """What a role has for the output's tensors, by the output's names."""
        checkpoint, parts = self.inputs[role], self.parts.get(role, [])
        found = {
            self._outside(role, name): info for name, info in checkpoint.tensors.items() if not self._inside(role, name)
        }
        for block in self.blocks:
            for i, layer in enumerate(block.layers.get(role, ())):
                found.update((_name(self.prefix, block.start + i, part), info) for part, info in parts[layer].items())
        return found

    def _origins(self) -> Iterator[tuple[str, Source]]:
        """Every tensor of the output with where it is, in the order of `start`, the layers in their own."""
        stacked = False
        for name, info in self.start.tensors.items():
            if not self._inside(self.role, name):
                yield self._outside(self.role, name), Source(self.role, info)
            elif not stacked:
                stacked = True
                for block in self.blocks:
                    for i, layer in enumerate(block.layers[block.first]):
                        for part, found in self.parts[block.first][layer].items():
                            yield _name(self.prefix, block.start + i, part), Source(block.first, found)

    def _inside(self, role: str, name: str) -> bool:
        place = self.inputs[role].anatomy.layer_of(name)
        return place is not None and place[0] == self.prefix

    def _outside(self, role: str, name: str) -> str:
        """The output's name of what is in no layer; what comes after the last (it predicts tokens) still does."""
        head, _, part = _after(self.prefix, name).partition(".")
        if role not in self.decoders or not _NUMBER.fullmatch(head):
            return name
        return _name(self.prefix, self.depth + int(head) - self.decoders[role].layers, part)

    def _config(self, remarks: list[str]) -> Mapping[str, object]:
        if not self.start.config:
            remarks.append(f"`{self.role}` has no `config.json`; write one for {self.depth} layers, or loaders fail")
            return self.start.config
        origins = [
            LayerOrigin(block.first, self.inputs[block.first].config, self.decoders[block.first].layers, layer)
            for block in self.blocks
            for layer in block.layers[block.first]
        ]
        found = restack(self.role, self.start.config, self.decoders[self.role].layers, origins)
        for message in found.faults.values():
            self.conflicts.slices(message)
        remarks += found.remarks
        told = [*found.by_number, *self._layers_by_name(found.config)]
        if told:
            remarks.append(f"what the config says of layers by their numbers stays as it is: {quoted(told)}; check it")
        return found.config

    def _nothing_dropped(self) -> list[str]:
        """Percentages of few layers may leave none out, and then the output is `start` once more."""
        layers = self.decoders[self.role].layers
        kept = [(block.first, layer) for block in self.blocks for layer in block.layers[block.first]]
        if self.edited or kept != [(self.role, layer) for layer in range(layers)]:
            return []
        told = (
            f"the slices keep all {numbered(layers, 'layer')} of `{self.role}`, in their order, and no step edits "
            "them: nothing is dropped; percentages of few layers are rounded to whole ones, so name less, or numbers"
        )
        return [told]

    def _layers_by_name(self, config: Mapping[str, object]) -> list[str]:
        """The keys below which layers are called by name, such as `quantization_config` with what is not quantised."""
        name = re.compile(rf"(?<![\w.]){re.escape(self.prefix)}\.\d")
        return [key for key, value in config.items() if self.prefix and name.search(json.dumps(value))]

    def _shard_bytes(self) -> int | None:
        """No file is larger than the largest of `start`; where that has one file, the output has one."""
        if self.start.index_name is None:
            return None
        sizes: dict[str, int] = defaultdict(int)
        for info in self.start.tensors.values():
            sizes[info.file] += info.nbytes
        return max(1, *sizes.values())

    def _compare(self) -> None:
        """Layers of other roles must be like layers of `start`, whose config the output gets."""
        ours = self.parts[self.role]
        always = [part for part in ours[0] if all(part in layer for layer in ours)]
        known: dict[str, dict[tuple[tuple[int, ...], DType], None]] = defaultdict(dict)
        for part, info in chain.from_iterable(layer.items() for layer in ours):
            known[part][info.shape, info.dtype] = None
        for block in self.blocks:
            for layer in dict.fromkeys(block.layers[block.first] if block.first != self.role else ()):
                theirs = self.parts[block.first][layer]
                for part in always:
                    if part not in theirs:
                        name = _name(self.prefix, layer, part)
                        self._unlike(
                            block,
                            name,
                            "missing",
                            f"`{name}` is not in `{block.first}`, and all layers of "
                            f"`{self.role}` have its like; {_ONE_ARCHITECTURE}",
                        )
                for part, info in theirs.items():
                    self._compare_tensor(block, info, list(known.get(part, ())))

    def _compare_tensor(self, block: Block, info: TensorInfo, known: Sequence[tuple[tuple[int, ...], DType]]) -> None:
        """Compare a tensor of a layer with those in its place in the layers of `start`."""
        name, role = f"`{info.name}`", f"`{block.first}`"
        dtypes = [dtype for shape, dtype in known if shape == info.shape]
        if not known:
            extra = f"{name} is in {role}, and no layer of `{self.role}` has its like; {_ONE_ARCHITECTURE}"
            self._unlike(block, info.name, "extra", extra)
        elif not dtypes:
            shapes = f"{list(info.shape)} in {role}, and in the layers of `{self.role}` {list(known[0][0])}"
            self._unlike(block, info.name, "shape", f"shapes differ: {name} is {shapes}; {_ONE_ARCHITECTURE}")
        elif info.dtype not in dtypes and not (self.casts and info.dtype.arithmetic and dtypes[0].arithmetic):
            found = f"{info.dtype.name} in {role}, and in the layers of `{self.role}` {dtypes[0].name}"
            remedy = "name the dtype of the output, `--set output.dtype=bfloat16` (or float16, float32)"
            self._unlike(block, info.name, "dtype", f"dtypes differ: {name} is {found}; {remedy}")

    def _unlike(self, block: Block, name: str, kind: str, message: str) -> None:
        self.conflicts.add(("slices", block.number), f"{block.first}: {kind}", name, message)


def _parts(checkpoint: Checkpoint, decoder: Stack) -> list[dict[str, TensorInfo]]:
    """The tensors of each layer, by the part of the name after the layer's number."""
    found: list[dict[str, TensorInfo]] = [{} for _ in range(decoder.layers)]
    for name, info in checkpoint.tensors.items():
        place = checkpoint.anatomy.layer_of(name)
        if place is not None and place[0] == decoder.prefix:
            found[place[1]][_after(decoder.prefix, name).partition(".")[2]] = info
    return found


def _after(prefix: str, name: str) -> str:
    """What follows a prefix in a name; nothing where it does not begin with it."""
    start = f"{prefix}." if prefix else ""
    return name[len(start) :] if name.startswith(start) else ""


def _name(prefix: str, layer: int, part: str) -> str:
    return ".".join(each for each in (prefix, str(layer), part) if each)
