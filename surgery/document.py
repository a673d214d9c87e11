"""A YAML document that a user names: a file, or one that comes with the package; and what it says as a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from surgery import bundled
from surgery.errors import Fault, RecipeError
from surgery.mapping_source import read_mapping
from surgery.ops import OPS
from surgery.source import Mistake, Source
from surgery.validation import mistakes
from surgery.wording import did_you_mean, quoted, show
from surgery.yaml_source import MAX_BYTES, read_yaml

Kind = TypeVar("Kind", bound=BaseModel)


def read_map(source: str | Path | Mapping[str, Any], noun: str, folder: str, keys: str) -> Source:
    """A document whose data is a map with such `keys`, or a mapping as such a document. Raises RecipeError."""
    read = read_mapping(source, noun) if isinstance(source, Mapping) else read_document(source, noun, folder)
    if not isinstance(read.data, dict):
        found = f"the {noun} is empty" if read.data is None else f"found {show(read.data)}"
        message = f"{found}; expected a map with {keys}"
        raise RecipeError(read.faults([Mistake((), message, line=1), *read.mistakes]))
    return read


def validated(
    kind: type[Kind], read: Source, more: Callable[[Mapping[str, Any]], list[Mistake]] = lambda _: []
) -> Kind:
    """The data of a document as a model. Raises RecipeError with all that is wrong with it.

    `more` finds mistakes between its parts; of a path that has one already no other is told.
    """
    assert isinstance(read.data, dict)
    wrong = [*read.mistakes]
    made: Kind | None = None
    try:
        made = kind.model_validate_json(json.dumps(read.data), strict=True)
    except ValidationError as error:
        wrong += mistakes(error, kind, read.data, (), [mistake.path for mistake in wrong if mistake.void])
    known = {mistake.path for mistake in wrong}
    wrong += [mistake for mistake in more(read.data) if mistake.path not in known]
    if wrong or made is None:
        raise RecipeError(read.faults(wrong))
    return made


def read_document(source: str | Path, noun: str, folder: str = "") -> Source:
    """Read a file, or where there is none of that name the bundled document in `folder` of `recipes`.

    `noun` says what it is in messages. Raises RecipeError when there is neither, and like `read_yaml`.
    """
    try:
        with Path(source).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(source, str) and source in bundled.names(folder):
            return read_yaml(bundled.read(source, folder), f"{source}.yaml")
        raise RecipeError([Fault("", _unreadable(str(source), error, noun, bundled.names(folder)))]) from None
    return read_yaml(content, str(source))


def _unreadable(source: str, error: OSError | ValueError, noun: str, known: list[str]) -> str:
    if isinstance(error, FileNotFoundError):
        near = did_you_mean(source, [*known, *map(str, Path(source).parent.glob("*.y*ml"))])
        hint = f"did you mean `{near}`?" if near else f"bundled {noun}s: {quoted(known)}"
        if source in OPS:
            hint = f"`{source}` is an operation, for a recipe's `steps`: see README, section Operations"
        return f"found neither a file nor a bundled {noun} {show(source)}; {hint}"
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"the {noun} {show(source)} cannot be read: {reason}; expected a file or a bundled {noun}'s name"
