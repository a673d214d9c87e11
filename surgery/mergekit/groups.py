"""What a mergekit file merges with each other: models, their base, and the settings that hold for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from surgery.mergekit.merge_file import MergeFile
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


def group_of_models(file: MergeFile) -> Group:
    """`models`, with the base at the end where it is not among them, as mergekit has it."""
    whole = Level((PARAMETERS,), file.parameters)
    members = [
        Member(each.model, ("models", i), (Level(("models", i, PARAMETERS), each.parameters), whole))
        for i, each in enumerate(file.models or ())
    ]
    if file.base_model is not None and file.base_model not in [member.model for member in members]:
        members.append(Member(file.base_model, ("base_model",), (whole,)))
    return Group(("merge_method",), tuple(members), file.base_model, (whole,))


def groups_of_slices(file: MergeFile) -> list[Group]:
    """One group a slice."""
    whole = Level((PARAMETERS,), file.parameters)
    groups = []
    for i, each in enumerate(file.slices or ()):
        place: Path = ("slices", i)
        levels = (Level((*place, PARAMETERS), each.parameters), whole)
        members = []
        for j, source in enumerate(each.sources):
            at: Path = (*place, "sources", j)
            members.append(Member(source.model, at, (Level((*at, PARAMETERS), source.parameters), *levels)))
        layers = tuple(source.layer_range for source in each.sources)
        groups.append(Group(place, tuple(members), each.base_model or file.base_model, levels, layers))
    return groups
