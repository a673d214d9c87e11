"""The slices of a recipe in their places: which layers of which role make which layers of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise

from surgery.anatomy import Stack
from surgery.checkpoint import Checkpoint
from surgery.conflicts import Conflicts
from surgery.layers import LayerRange
from surgery.recipe import Recipe, Slice
from surgery.wording import numbered

MAX_LAYERS = 10_000  # of an output: a hundred times what is in use, and planned in seconds


@dataclass(frozen=True)
class Block:
    """A slice in its place: the output's layers from `start` on.

    `layers` are those that each role has for them, as many of each. Of a role that the slice does not name they are
    those with the numbers of the first role's; it is left out where it has none with these numbers. `named` are the
    roles that the slice names, in its order.
    """

    number: int
    start: int
    named: tuple[str, ...]
    layers: Mapping[str, Sequence[int]]

    @property
    def first(self) -> str:
        """The role whose layers these are before the steps."""
        return self.named[0]

    @property
    def outcome(self) -> range:
        """The output's layers."""
        return range(self.start, self.start + len(self.layers[self.first]))

    def __str__(self) -> str:
        return ", ".join(f"{role} {spell(self.layers[role])}" for role in self.named)


def spell(layers: Sequence[int]) -> str:
    """`0-15`, or `[0-3, 2-5]`, as a recipe has it."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    told = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return told[0] if len(told) == 1 else f"[{', '.join(told)}]"


def decoders(recipe: Recipe, inputs: Mapping[str, Checkpoint], conflicts: Conflicts) -> dict[str, Stack]:
    """The text decoder of each role that has one by the name that it has in `start`.

    Raises PlanError where there is none in `start`, or in a role that a slice names.
    """
    ours = inputs[recipe.start].anatomy.decoder
    slices = recipe.slices or ()
    found = {}
    for role, checkpoint in inputs.items():
        decoder = checkpoint.anatomy.decoder
        number = next((i for i, each in enumerate(slices) if role in each), None)
        if decoder is not None and ours is not None and decoder.prefix == ours.prefix:
            found[role] = decoder
        elif decoder is None and (role == recipe.start or number is not None):
            conflicts.slices(f"no text decoder is recognised in `{role}`; its layers cannot be told apart", number)
        elif decoder is not None and ours is not None and number is not None:
            conflicts.slices(
                f"the layers are `{ours.prefix}` in `{recipe.start}` and `{decoder.prefix}` in `{role}`; expected "
                f"checkpoints of one architecture",
                number,
            )
    conflicts.raise_all()
    return found


def place(slices: Sequence[Slice], stacks: Mapping[str, Stack], conflicts: Conflicts) -> tuple[Block, ...]:
    """The slices in their places. Adds to `conflicts` what is wrong with them; raises PlanError without any layer.

    Layers that do not exist are then replaced by others, so that what else is wrong can be found.
    """
    blocks: list[Block] = []
    depth = 0
    for number, asked in enumerate(slices):
        blocks.append(Block(number, depth, tuple(asked), dict(_layers(number, asked, stacks, conflicts))))
        depth += len(blocks[-1].outcome)
        if depth > MAX_LAYERS:
            conflicts.slices(f"found more than {MAX_LAYERS:,} layers in all; expected fewer")
            conflicts.raise_all()
    if not depth:
        conflicts.raise_all()
    _check_shares(slices, blocks, stacks, conflicts)
    return tuple(blocks)


def _check_shares(
    slices: Sequence[Slice], blocks: Sequence[Block], stacks: Mapping[str, Stack], conflicts: Conflicts
) -> None:
    """Percentages that leave layers out or divide them must do so here; of few layers they are rounded to too many.

    `first 75%` and then `last 1` mean fewer layers than there are, and would make three of two. `first 60%` and
    `last 60%` repeat layers whatever their number is, and so do ranges: they are meant.
    """
    for before, block in pairwise(blocks):
        first, last = slices[before.number][before.first], slices[block.number][block.first]
        n = stacks[block.first].layers
        twice = sorted(set(before.layers[before.first]) & set(block.layers[block.first]))
        if twice and n == stacks[before.first].layers and _shares_one_stack(first, last):
            conflicts.slices(
                f"`{before.first}: {first}` and then `{block.first}: {last}` have {numbered(len(twice), 'layer')} of "
                f"{n} in common ({spell(twice)}), so that they drop none and make the model deeper; name less, or the "
                f"layers by their numbers",
                block.number,
            )


def _shares_one_stack(first: LayerRange, last: LayerRange) -> bool:
    """Whether the two are a beginning and an end, with percentages that add up to no more than the whole."""
    shares = [each.quantity.percent for each in (first, last) if each.quantity is not None]
    given = [share for share in shares if share is not None]
    return (first.kind, last.kind) == ("first", "last") and bool(given) and sum(given) <= 100


def _layers(
    number: int, asked: Slice, stacks: Mapping[str, Stack], conflicts: Conflicts
) -> Iterator[tuple[str, list[int]]]:
    """The layers of each role in a slice."""
    first = next(iter(asked))
    expected = _read(asked[first], stacks[first].layers)
    for role, layers in asked.items():
        n = stacks[role].layers
        chosen = _read(layers, n)
        if not chosen:
            conflicts.slices(f"`{role}: {layers}` selects no layer", number)
        elif max(chosen) >= n:
            conflicts.slices(f"`{role}: {layers}` names layer {max(chosen)}; `{role}` has layers 0-{n - 1}", number)
        if len(chosen) != len(expected):
            conflicts.slices(
                f"`{first}: {asked[first]}` makes {len(expected)} layers and `{role}: {layers}` {len(chosen)}; "
                f"expected as many of each role",
                number,
            )
            chosen = expected
        yield role, [min(i, n - 1) for i in chosen]
    for role, stack in stacks.items():
        if role not in asked and max(expected, default=0) < stack.layers:
            yield role, expected


def _read(layers: LayerRange, n: int) -> list[int]:
    return list(islice(layers.in_order(n), MAX_LAYERS + 1))
