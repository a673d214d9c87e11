"""A step of a recipe, made from a group of models and a merge method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgery.mergekit.groups import Group, Level, Member
from surgery.mergekit.methods import Method, Parameter
from surgery.mergekit.settings import Branch, flag, glob, in_force, number
from surgery.ops.merge import PER_MODEL
from surgery.source import Mistake, Path
from surgery.wording import numbered, show


@dataclass(frozen=True, slots=True)
class Span:
    """The layers of the output that a step makes: a gradient runs over these, and not over all as in recipes of ours.

    Without layers it is what lies outside of them: there a gradient has its first value, as mergekit has it.
    """

    first: int = 0
    layers: int = 0

    def depths(self) -> dict[int, float]:
        """Each layer's number with its depth in the span, from 0 to 1; that of a single layer is 1."""
        last = self.layers - 1
        return {self.first + i: i / last if last else 1.0 for i in range(self.layers)}


@dataclass
class Step:
    """The step's data, the places of the file that its fields come from, and what is wrong there."""

    data: dict[str, Any]
    span: Span | None
    places: dict[str, Path] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)


def make_step(name: str, method: Method, group: Group, roles: Mapping[str, str], span: Span | None = None) -> Step:
    """The step that merges a group by the method of this name; `roles` are those of the models.

    `span` is where in the output it does so; None: everywhere.
    """
    base = next((member for member in group.members if member.model == group.base), None)
    merged = [member for member in group.members if method.base == "none" or member is not base]
    step = Step({"op": name}, span)
    step.mistakes += _wrong_models(name, method, group, base, merged)
    if step.mistakes:
        return step
    if base is not None and not merged:
        return Step({"op": "passthrough", "models": [roles[base.model]]}, span)
    if base is not None and method.base == "first":
        merged.insert(0, base)
    elif base is not None and method.base != "none":
        step.data["base"] = roles[base.model]
        step.places["base"] = base.place
    step.data["models"] = [roles[member.model] for member in merged]
    for parameter in method.parameters:
        if parameter.scope == "shared":
            _set_shared(step, parameter, group, step.data["models"])
        else:
            _set_per_model(step, parameter, merged, roles)
    step.data = method.respell(step.data)
    return step


def _wrong_models(
    name: str, method: Method, group: Group, base: Member | None, merged: Sequence[Member]
) -> list[Mistake]:
    repeated = [
        member for i, member in enumerate(group.members) if member.model in [m.model for m in group.members[:i]]
    ]
    if repeated:
        return [Mistake(member.place, f"{show(member.model)} is listed twice; keep one") for member in repeated]
    if base is None and method.base in ("needed", "first"):
        if group.base is None:
            return [Mistake(group.place, f"`base_model` is missing; `{name}` needs it")]
        return [Mistake(group.place, f"the base model {show(group.base)} is not among the sources; `{name}` needs it")]
    beside = " beside the base model" if method.base != "none" else " with the base model" if base is not None else ""
    if len(merged) < method.least:
        wanted = f"at least {numbered(method.least, 'model')}"
        return [Mistake(group.place, f"`{name}` found {numbered(len(merged), 'model')}{beside}; expected {wanted}")]
    if method.most is not None and len(merged) > method.most:
        wanted = numbered(method.most, "model")
        return [Mistake(group.place, f"`{name}` found {numbered(len(merged), 'model')}{beside}; expected {wanted}")]
    return []


def _set_shared(step: Step, parameter: Parameter, group: Group, models: Sequence[str]) -> None:
    branches, place = _found(group.levels, parameter.name)
    if not branches:
        if parameter.needed:
            message = f"`{parameter.name}` is missing under `parameters`; `{step.data['op']}` needs it"
            step.mistakes.append(Mistake(group.place, message))
        return
    value = _value(step, parameter, branches, place)
    if parameter.field in PER_MODEL and isinstance(value, list):
        value = dict.fromkeys(models, value)  # a list there would be read as one number a model
    step.data[parameter.field] = value
    step.places[parameter.field] = place


def _set_per_model(step: Step, parameter: Parameter, merged: Sequence[Member], roles: Mapping[str, str]) -> None:
    found = [(member, *_found(member.levels, parameter.name)) for member in merged]
    if not any(branches for _, branches, _ in found) and not parameter.needed:
        return
    values = {}
    for member, branches, place in found:
        if branches:
            values[roles[member.model]] = _value(step, parameter, branches, place)
            step.places.setdefault(parameter.field, place)
        elif parameter.needed:
            name = step.data["op"]
            message = f"`{parameter.name}` of {show(member.model)} is missing; `{name}` needs it for each model"
            step.mistakes.append(Mistake(member.place, message))
        else:
            values[roles[member.model]] = parameter.default
    first = next(iter(values.values()), None)
    alike = not isinstance(first, list) and all(value == first for value in values.values())
    one = alike or parameter.field not in PER_MODEL  # what is of one model alone needs no map
    step.data[parameter.field] = first if one else values


def _found(levels: Sequence[Level], name: str) -> tuple[tuple[Branch, ...], Path]:
    """The branches in force, and where the first of them stands."""
    branches = in_force([level.settings for level in levels], name)
    return branches, next(((*level.place, name) for level in levels if name in level.settings), ())


def _value(step: Step, parameter: Parameter, branches: Sequence[Branch], place: Path) -> Any:
    """As the field of our operation holds it; None, and a mistake, where that cannot be."""
    try:
        if parameter.kind != "number":
            return _constant(parameter, branches)
        return _number(parameter, branches, step.span)
    except ValueError as error:
        step.mistakes.append(Mistake(place, str(error)))
        return None


def _constant(parameter: Parameter, branches: Sequence[Branch]) -> float | bool:
    values = {value for branch in branches for value in branch.values}
    if len(values) > 1 or branches[-1].filter is not None:
        raise ValueError("found values that differ from tensor to tensor; expected one for all")
    (value,) = values
    if parameter.kind == "flag":
        return flag(value)
    found = number(value)
    if parameter.kind == "constant":
        return found
    if found != int(found):
        raise ValueError(f"found {show(value)}; expected a whole number")
    return int(found)


def _number(parameter: Parameter, branches: Sequence[Branch], span: Span | None) -> Any:
    """A number, a list over the layers, or rules."""
    rules: list[dict[str, Any]] = []
    for branch in branches:
        values = [number(value) for value in branch.values]
        tensors = {} if branch.filter is None else {"tensors": glob(branch.filter), "optional": True}
        if len(set(values)) == 1 or span is None:
            rules.append({**tensors, "value": values[0] if len(set(values)) == 1 else values})
        elif span.layers == 0:
            rules.append({**tensors, "value": values[0]})
        else:
            depths = span.depths()
            rules += [{"layers": i, **tensors, "value": _interpolated(values, t)} for i, t in depths.items()]
    if branches[-1].filter is not None and not parameter.needed:
        rules.append({"value": parameter.default})
    return rules[0]["value"] if rules[0].keys() == {"value"} else rules


def _interpolated(values: Sequence[float], depth: float) -> float:
    """The value of a gradient at a depth from 0 to 1."""
    scaled = depth * (len(values) - 1)
    below = int(scaled)
    above = min(below + 1, len(values) - 1)
    return values[below] + (scaled - below) * (values[above] - values[below])
