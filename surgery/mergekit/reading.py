"""Reads a recipe file of mergekit, and tells what is wrong with it in words about such files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.document import validated
from surgery.errors import Fault, RecipeError
from surgery.mergekit.merge_file import MergeFile
from surgery.mergekit.methods import KNOWN, METHODS
from surgery.mergekit.yaml_file import read_again
from surgery.source import Mistake, Path, Source
from surgery.wording import did_you_mean, quoted, show
from surgery.yaml_source import SECOND

WHOLE = "default"  # how mergekit calls the one module of an architecture that has no others

_OTHERS = {  # keys of the files of mergekit's other programs: whose they are, and what to do
    "experts": "mergekit-moe makes a mixture of experts of such a file; this is not supported: merge the models into "
    "one, with `models` and `merge_method`, or run mergekit-moe and edit what it makes",
    "genome": "mergekit-evolve searches for a merge with such a file; this is not supported: write the merge that it "
    "found, or a sweep, `surgery sweep --help`",
}
_METHOD = "merge_method"
_SIGNS = ("base_model", "modules", *_OTHERS)  # keys that a recipe of ours does not have
_LISTS = {"models": "model", "slices": "sources"}  # keys that it has, and what only a map in mergekit's list has
_ENTRY = re.compile(r" (models|slices\[\d+\]\.sources)\[\d+\]$")  # the place of a model
_LOOKS = "this looks like a recipe file of mergekit"
IGNORED = "mergekit ignores it"
_MISPLACED = {  # what people write where mergekit does not look
    **dict.fromkeys(KNOWN, "put it under `parameters`"),
    "revision": "write `model: org/name@REVISION`",
    "lora": "write `model: MODEL+ADAPTER`",
}


def is_merge_file(data: object) -> bool:
    """Whether a document is a file of mergekit, and none of ours; it may be one with mistakes."""
    if not isinstance(data, dict) or "steps" in data:
        return False
    return any(sign in data for sign in _SIGNS) or any(
        did_you_mean(key, [_METHOD]) is not None or _lists_maps(key, value) for key, value in data.items()
    )


def _lists_maps(key: str, value: object) -> bool:
    """Whether a list has maps such as `model: ...`, where those of ours have names of roles."""
    parts = value if isinstance(value, list) else []
    return any(isinstance(part, dict) and _LISTS.get(key) in part for part in parts)


def read_merge_file(read: Source) -> tuple[Source, MergeFile]:
    """A file of mergekit, read with all of YAML that it may have. Raises RecipeError with everything that is wrong."""
    read = read_again(read)
    assert isinstance(read.data, dict)
    other = next((key for key in _OTHERS if key in read.data), None)
    if other is not None:
        raise RecipeError(read.faults([Mistake((other,), f"found `{other}`; {_OTHERS[other]}")]))
    try:
        return read, validated(MergeFile, read, _wrong_parts)
    except RecipeError as error:
        raise RecipeError([_for_mergekit(fault) for fault in error.faults]) from None


def _for_mergekit(fault: Fault) -> Fault:
    """A fault of a document of ours as one of a file of mergekit."""
    name = re.fullmatch("found `(.+)`; expected a map", fault.message)
    if name and _ENTRY.search(fault.where):
        return Fault(fault.where, f"{fault.message}: `model: {name[1]}`")
    return Fault(fault.where, _told(fault.message))


def _told(message: str) -> str:
    several = "mergekit-multi (once mergekit-mega) runs several merges of one file; this is not supported"
    message = message.replace(SECOND, f"{SECOND}; {several}: give each merge a file of its own, and run them in turn")
    if message.startswith(f"`{_METHOD}` is missing"):
        return f"{message}; {_LOOKS}, which needs one of {quoted(METHODS)}"
    unknown = re.match("unknown key `(.+?)`; ", message)
    if unknown is None or IGNORED in message:
        return message
    if f"did you mean `{_METHOD}`" in message:
        return f"{message} ({_LOOKS})"
    advice = _MISPLACED.get(unknown[1])
    return f"{unknown[0]}{advice} ({IGNORED})" if advice else f"{message} ({IGNORED})"


def _wrong_parts(data: Mapping[str, Any]) -> list[Mistake]:
    """What is wrong between the parts of a file, or of each of its modules."""
    found = _neither_or_both(data, ("models", "slices", "modules"), ())
    modules = data.get("modules")
    if not isinstance(modules, dict) or not modules:
        return found
    for name, module in modules.items():
        if isinstance(module, dict):
            found += _neither_or_both(module, ("models", "slices"), ("modules", name))
    first, *others = modules
    if not others and first != WHOLE:
        message = (
            f"found the module {show(first)} alone, and mergekit writes no other; expected `{WHOLE}`, the whole of "
        )
        found.append(Mistake(("modules", first), f"{message}a model that has no modules, or `models`"))
    for name in others:
        if modules[name] != modules[first] or modules[first].get("slices"):
            message = (
                f"found another merge than that of {show(first)}; modules that are merged in ways of their own are "
            )
            found.append(Mistake(("modules", name), f"{message}not supported: merge the models whole, with `models`"))
    return found


def _neither_or_both(data: Mapping[str, Any], keys: Sequence[str], place: Path) -> list[Mistake]:
    given = [key for key in keys if data.get(key)]
    if len(given) == 1:
        return []
    empty = [key for key in keys if key in data]
    nothing = f"nothing in `{empty[0]}`" if empty else "neither `models` nor `slices`"
    found = " and ".join(f"`{key}`" for key in given) or nothing
    at = (*place, *(given or empty)[-1:])
    return [Mistake(at, f"found {found}; expected one of `models` and `slices`")]
