"""What a mergekit file merges with each other: models, their base, and the settings that hold for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgery.mergekit.merge_file import Input, MergeFile, Module, Slice
from surgery.mergekit.settings import Setting
from surgery.source import Path

Settings = Mapping[str, Setting]
PARAMETERS = "parameters"


@dataclass(frozen=True, slots=True)
class Level:
    """The settings of one place of the file."""

    place: Path
    settings: Settings


@dataclass(frozen=True, slots=True)
class Member:
    """A model of a group: what the file calls it, where it stands, and its settings, the nearest first."""

    model: str
    place: Path
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Models that are merged; `levels` are the settings for all of them, the nearest first."""

    place: Path
    members: tuple[Member, ...]
    base: str | None
    levels: tuple[Level, ...]
    layers: tuple[tuple[int, int], ...] = ()  # of each member, from the first up to the second; empty: all


def groups_of(file: MergeFile) -> list[Group]:
    """Of `models` one group, of `slices` one for each; in a module, where the file has such, with its settings."""
    place: Path = ()
    what: MergeFile | Module = file
    levels = [Level((PARAMETERS,), file.parameters)]
    if file.modules:
        name, what = next(iter(file.modules.items()))  # if there are others, they say the same
        place = ("modules", name)
        levels.insert(0, Level((*place, PARAMETERS), what.parameters))
    if what.slices:
        return [
            _group_of_slice(each, (*place, "slices", i), levels, file.base_model) for i, each in enumerate(what.slices)
        ]
    return [_group_of_models(what.models or (), place, levels, file.base_model)]


def _group_of_models(models: Sequence[Input], place: Path, levels: Sequence[Level], base: str | None) -> Group:
    """With the base at the end where it is not among them, as mergekit has it."""
    members = []
    for i, each in enumerate(models):
        at: Path = (*place, "models", i)
        members.append(Member(each.model, at, (Level((*at, PARAMETERS), each.parameters), *levels)))
    if base is not None and base not in [member.model for member in members]:
        members.append(Member(base, ("base_model",), tuple(levels)))
    return Group(("merge_method",), tuple(members), base, tuple(levels))


def _group_of_slice(part: Slice, place: Path, outer: Sequence[Level], base: str | None) -> Group:
    levels = (Level((*place, PARAMETERS), part.parameters), *outer)
    members = []
    for j, source in enumerate(part.sources):
        at: Path = (*place, "sources", j)
        members.append(Member(source.model, at, (Level((*at, PARAMETERS), source.parameters), *levels)))
    layers = tuple(source.layer_range for source in part.sources)
    return Group(place, tuple(members), part.base_model or base, levels, layers)
