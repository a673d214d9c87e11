"""What the slices of a mergekit file become: slices of ours, and the steps that work on them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from surgery.mergekit.groups import Group
from surgery.mergekit.methods import Method
from surgery.mergekit.step import Span, Step, make_step
from surgery.source import Mistake
from surgery.wording import show

BEFORE = {"tensors": ["embedding"]}  # mergekit makes these of the models of the first slice,
AFTER = {"tensors": ["all"], "exclude": ["embedding", "*.[0-9]*"]}  # and the norm and the head of those of the last


def wrong_lengths(groups: Sequence[Group]) -> list[Mistake]:
    """Sources that do not give a slice as many layers as the first one does."""
    found = []
    for group in groups:
        counts = [end - first for first, end in group.layers]
        for member, count in zip(group.members, counts, strict=True):
            if count != counts[0]:
                expected = f"found {count} layers; expected {counts[0]}, as many as of the slice's first source"
                found.append(Mistake((*member.place, "layer_range"), expected))
    return found


def moved_filters(groups: Sequence[Group], method: Method) -> list[Mistake]:
    """Filters with numbers of layers that the output counts in another way: what is set for one model, mergekit
    compares with the names in that model.
    """
    found = []
    first = 0
    for group in groups:
        for member, (low, _) in zip(group.members, group.layers, strict=True):
            for level in member.levels if low != first else ():
                for parameter in method.parameters:
                    setting = level.settings.get(parameter.name) if parameter.scope != "shared" else None
                    texts = [branch.filter or "" for branch in setting.branches] if setting else []
                    if text := next((text for text in texts if re.search("[0-9]", text)), None):
                        message = f"the filter {show(text)} is for the names in {show(member.model)}, whose layers get "
                        message += "other numbers; expected one without numbers"
                        found.append(Mistake((*level.place, parameter.name), message))
        low, high = group.layers[0]
        first += high - low
    return found


def slices_of(groups: Sequence[Group], roles: Mapping[str, str]) -> list[dict[str, str]]:
    """As a recipe of ours writes them: ranges include their end."""
    return [
        {
            roles[member.model]: f"{first}-{end - 1}"
            for member, (first, end) in zip(group.members, group.layers, strict=True)
        }
        for group in groups
    ]


def steps_of(
    name: str, method: Method, groups: Sequence[Group], roles: Mapping[str, str], start: str
) -> list[tuple[Group, Step]]:
    """The steps with the groups that they merge: one for each part of the output that is made in its own way.

    `start` is the role that the tensors outside the layers come from.
    """
    if len(groups) == 1:
        parts = [(groups[0], make_step(name, method, groups[0], roles))]
    else:
        parts = _parts(name, method, groups, roles)
    kept = [(group, step) for group, step in parts if not _is_there(step, group, roles, start)]
    if len(parts) == len(kept) and all(_merge(step) == _merge(kept[0][1]) for _, step in kept):
        group, step = kept[0]
        return [(group, replace(step, data=_merge(step)))]  # one way for everything
    return [(group, replace(step, data=_as_copy(step.data))) for group, step in _joined(kept)]


def _parts(name: str, method: Method, groups: Sequence[Group], roles: Mapping[str, str]) -> list[tuple[Group, Step]]:
    """What comes before the layers, the layers of each slice, and what comes after them."""
    parts = [(groups[0], _selecting(BEFORE, make_step(name, method, groups[0], roles, Span())))]
    first = 0
    for group in groups:
        low, high = group.layers[0]
        step = make_step(name, method, group, roles, Span(first, high - low))
        parts.append((group, _selecting({"layers": [f"{first}-{first + high - low - 1}"]}, step)))
        first += high - low
    parts.append((groups[-1], _selecting(AFTER, make_step(name, method, groups[-1], roles, Span()))))
    return parts


def _joined(parts: Sequence[tuple[Group, Step]]) -> list[tuple[Group, Step]]:
    """Slices that are made in the same way by one step."""
    found: list[tuple[Group, Step]] = []
    for group, step in parts:
        layers = step.data["select"].get("layers", [])
        for i, (_, other) in enumerate(found):
            before = other.data["select"].get("layers", [])
            if layers and before and _merge(step) == _merge(other):
                found[i] = (found[i][0], _selecting({"layers": [*before, *layers]}, other))
                break
        else:
            found.append((group, step))
    return found


def _selecting(select: Mapping[str, Any], step: Step) -> Step:
    return replace(step, data={**step.data, "select": dict(select)})


def _merge(step: Step) -> dict[str, Any]:
    return {key: value for key, value in step.data.items() if key != "select"}


def _is_there(step: Step, group: Group, roles: Mapping[str, str], start: str) -> bool:
    """Whether a step would put what is there without it: layers as the slices name them, the rest as in `start`."""
    if step.mistakes or step.data["op"] != "passthrough" or "scale" in step.data:
        return False
    layers_alone = step.span is not None and step.span.layers > 0
    return layers_alone or roles[group.members[0].model] == start


def _as_copy(data: dict[str, Any]) -> dict[str, Any]:
    """Tensors that are passed through as they are, are copied."""
    if data["op"] != "passthrough" or "scale" in data or "select" not in data:
        return data
    return {"op": "reset_layers", "from": data["models"][0], "select": data["select"]}
