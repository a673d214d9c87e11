"""Reads a recipe file of mergekit, and tells what is wrong with it in words about such files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.document import validated
from surgery.errors import Fault, RecipeError
from surgery.mergekit.merge_file import MergeFile
from surgery.mergekit.methods import KNOWN
from surgery.mergekit.yaml_file import read_again
from surgery.source import Mistake, Path, Source
from surgery.wording import show
from surgery.yaml_source import SECOND

WHOLE = "default"  # how mergekit calls the one module of an architecture that has no others

_OTHERS = {  # keys of the files of mergekit's other programs: whose they are, and what to do
    "experts": "mergekit-moe makes a mixture of experts of such a file; this is not supported: merge the models into "
    "one, with `models` and `merge_method`, or run mergekit-moe and edit what it makes",
    "genome": "mergekit-evolve searches for a merge with such a file; this is not supported: write the merge that it "
    "found, or a sweep, `surgery sweep --help`",
}
_SIGNS = ("merge_method", "base_model", "modules", *_OTHERS)  # keys that a recipe of ours does not have
IGNORED = "mergekit ignores it"
_MISPLACED = {  # what people write where mergekit does not look
    **dict.fromkeys(KNOWN, "put it under `parameters`"),
    "revision": "write `model: org/name@REVISION`",
    "lora": "write `model: MODEL+ADAPTER`",
}


def is_merge_file(data: object) -> bool:
    """Whether a document is a file of mergekit, and none of ours, whose `models` are names."""
    if not isinstance(data, dict) or "steps" in data:
        return False
    models = data.get("models")
    return any(sign in data for sign in _SIGNS) or (
        isinstance(models, list) and any(isinstance(m, dict) for m in models)
    )


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
        raise RecipeError([Fault(fault.where, _for_mergekit(fault.message)) for fault in error.faults]) from None


def _for_mergekit(message: str) -> str:
    """A message about a document of ours as one about a file of mergekit."""
    message = message.replace(SECOND, f"{SECOND}; give each merge a file of its own, and run them in turn")
    unknown = re.match("unknown key `(.+?)`; ", message)
    if unknown is None or IGNORED in message:
        return message
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
    found = " and ".join(f"`{key}`" for key in given) or "neither `models` nor `slices`"
    at = (*place, given[-1]) if given else place
    return [Mistake(at, f"found {found}; expected one of `models` and `slices`")]
