"""A YAML document that a user names: a file, or one that comes with the package."""

from __future__ import annotations

from pathlib import Path

from surgery import bundled
from surgery.errors import Fault, RecipeError
from surgery.source import Source
from surgery.wording import did_you_mean, quoted, show
from surgery.yaml_source import MAX_BYTES, read_yaml


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
        return f"found neither a file nor a bundled {noun} {show(source)}; {hint}"
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"the {noun} {show(source)} cannot be read: {reason}; expected a file or a bundled {noun}'s name"
