"""Which tensors a step acts on."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase, translate
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from surgery.groups import GROUPS
from surgery.layers import LayerRange, LayerRangeField
from surgery.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from surgery.anatomy import Anatomy, Stack

ALL = "all"

_INTEGER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


class Select(BaseModel):
    """`select:` of a step: layers of one stack, groups or globs of tensors, less what is excluded.

    `layers` omitted means no restriction to layers, `tensors` omitted means all; both together mean their
    intersection. An entry of `tensors` or `exclude` is a group, `all`, a tensor's name, or a glob on full
    names. Groups and layers are those of the text decoder; `stack` names another stack, and then only the
    tensors that are in it or stand beside it count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: LayerRangeField | None = Field(default=None, description="layers of the stack; default: no restriction")
    tensors: tuple[str, ...] = Field(
        default=(), description="groups (attention, mlp, norm, embedding, lm_head, all) or globs; default: all"
    )
    exclude: tuple[str, ...] = Field(default=(), description="groups or globs that are left out")
    stack: str | None = Field(default=None, description="prefix of another stack than the text decoder's")


def selecting(layers: str | None, tensors: str | Sequence[str], exclude: str | Sequence[str]) -> Select | None:
    """What a recipe's `select` would say, or None where nothing is said. Raises ValueError for unreadable layers."""
    if layers is None and not tensors and not exclude:
        return None
    within = None if layers is None else LayerRange.parse(layers)
    tensors, exclude = ((each,) if isinstance(each, str) else tuple(each) for each in (tensors, exclude))
    return Select(layers=within, tensors=tensors, exclude=exclude)


def resolve(select: Select, anatomy: Anatomy, names: Iterable[str]) -> list[str]:
    """The names that `select` means, in the order of `names`.

    Raises ValueError, with the nearest match, when an entry matches nothing or when nothing is left.
    """
    ordered = list(names)
    stack = anatomy.decoder if select.stack is None else _stack(select.stack, anatomy)
    if select.stack is not None and stack is not None:
        ordered = [name for name in ordered if anatomy.home_of(name) == stack.prefix]
    matches = {entry: _matches(entry, anatomy, stack, ordered) for entry in (*select.tensors, *select.exclude)}
    allowed = _in_layers(select, anatomy, stack, ordered)
    wanted = set().union(*(matches[entry] for entry in select.tensors)) if select.tensors else set(ordered)
    excluded = set().union(*(matches[entry] for entry in select.exclude))
    both = [name for name in ordered if name in allowed and name in wanted]
    chosen = [name for name in both if name not in excluded]
    if not chosen:
        raise ValueError(_empty(select, allowed, wanted, both))
    return chosen


def _stack(text: str, anatomy: Anatomy) -> Stack:
    if text in anatomy.stacks:
        return anatomy.stacks[text]
    found = [
        stack
        for prefix, stack in anatomy.stacks.items()
        if prefix.startswith(text) or prefix.endswith(text) or fnmatchcase(prefix, text)
    ]
    if len(found) == 1:
        return found[0]
    near = difflib.get_close_matches(text, anatomy.stacks, n=1, cutoff=0.4)
    hint = f"; did you mean `{near[0]}`?" if near and not found else ""
    fault = "means more than one stack" if found else "means no stack"
    raise ValueError(f"`stack: {text}` {fault}; the stacks are {_stacks(anatomy)}{hint}")


def _in_layers(select: Select, anatomy: Anatomy, stack: Stack | None, names: list[str]) -> set[str]:
    if select.layers is None:
        return set(names)
    if stack is None:
        raise ValueError(f"`layers: {select.layers}`: {_no_decoder(anatomy)}")
    try:
        indices = select.layers.of(stack.layers)
    except ValueError as error:
        raise ValueError(f"{error} (stack `{stack.prefix}`)") from error
    inside = {(stack.prefix, index) for index in indices}
    return {name for name in names if anatomy.layer_of(name) in inside}


def _matches(entry: str, anatomy: Anatomy, stack: Stack | None, names: list[str]) -> set[str]:
    if entry == ALL:
        return set(names)
    if entry in GROUPS:
        home = stack.prefix if stack else None
        found = {name for name in names if anatomy.group_of(name) == entry and anatomy.home_of(name) == home}
    else:
        glob = re.compile(translate(entry))
        found = {entry} & set(names) or {name for name in names if glob.match(name)}
    if not found:
        raise ValueError(f"`{entry}` matches no tensor{_hint(entry, anatomy, stack, names)}")
    return found


def _hint(entry: str, anatomy: Anatomy, stack: Stack | None, names: list[str]) -> str:
    home = stack.prefix if stack else None
    present = {anatomy.group_of(name) for name in names if anatomy.home_of(name) == home}
    groups = [group for group in GROUPS if group in present]
    if entry == "lm_head" and anatomy.tied and anatomy.embedding in names:
        return f": the head is tied to `{anatomy.embedding}`; select `embedding`"
    if entry in GROUPS and stack is None and anatomy.stacks:
        return f": {_no_decoder(anatomy)}"
    if entry in GROUPS:
        where = f" of `{home}`" if home else ""
        return f"{where} in that group; the groups found are {quoted(groups) or 'none'}; or give a glob on full names"
    if re.fullmatch(r"[\w.]+", entry) and any(f".{entry}." in f".{name}." for name in names):
        return f": full names are matched; did you mean `{_glob(entry, names)}`?"
    return _nearest(entry, [*groups, ALL], names)


def _nearest(entry: str, words: list[str], names: list[str]) -> str:
    """The group, glob or name most like an entry; of names that differ in integers alone one is compared."""
    patterns = {_INTEGER.sub("*", name): name for name in names}
    generic = _INTEGER.sub("*", entry)
    if re.fullmatch(r"\w+", entry):
        parts = {part for pattern in patterns for part in pattern.split(".")} - {"*", "weight", "bias"}
        candidates = [*words, *sorted(parts)]
    else:
        tails = {f"*.{'.'.join(pattern.split('.')[-2:])}" for pattern in patterns if pattern.count(".") > 1}
        candidates = [*words, *sorted(tails), *patterns]
    near = difflib.get_close_matches(generic, candidates, n=1, cutoff=0.5)
    if not near:
        return f"; the groups are {quoted(words)}, and a name here is `{names[0] if names else ''}`"
    found = near[0]
    if re.fullmatch(r"\w+", found) and found not in words:
        found = _glob(found, names)
    elif "*" not in entry and found in patterns:
        integers = iter(_INTEGER.findall(entry))
        same = re.sub(r"\*", lambda star: next(integers, star[0]), found)
        found = same if same in names else patterns[found]
    return f"; did you mean `{found}`?"


def _glob(part: str, names: list[str]) -> str:
    """A glob for the names that have `part` among their components."""
    return f"*.{part}.*" if any(f".{part}." in name for name in names) else f"*{part}*"


def _empty(select: Select, allowed: Collection[str], wanted: Collection[str], both: Collection[str]) -> str:
    if not allowed:
        return f"`layers: {select.layers}` selects no layer"
    entries = ", ".join(select.tensors) or ALL
    if not both:
        return (
            f"no tensor is both in `tensors: [{entries}]` ({len(wanted)} match) and in `layers: {select.layers}` "
            f"({len(allowed)} lie there); drop `layers` for what lies outside the layers"
        )
    return f"`exclude: [{', '.join(select.exclude)}]` removes all {len(both)} tensors that are selected"


def _no_decoder(anatomy: Anatomy) -> str:
    return f"no text decoder is recognised; name the stack that is meant with `stack:`, of {_stacks(anatomy)}"


def _stacks(anatomy: Anatomy) -> str:
    shown = [f"{prefix}` ({stack.layers} layers)" for prefix, stack in anatomy.stacks.items()]
    return ", ".join(f"`{text}" for text in shown) or "none"
