"""The recipes that come with the package, and sweeps and configurations of the trainers in folders of theirs."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.errors import Fault, RecipeError
from surgery.wording import show, suggestion

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_SUFFIX = ".yaml"
_NOUNS = {"": "recipe", "sweeps": "sweep"}  # by folder


def _directory(folder: str) -> Traversable:
    """`surgery/_recipes` of an installed package, `recipes` beside `surgery` in a source tree; or a folder in it."""
    installed = resources.files("surgery") / "_recipes"
    recipes = installed if installed.is_dir() else Path(__file__).parent.parent / "recipes"
    return recipes / folder if folder else recipes


def names(folder: str = "") -> list[str]:
    """The names of the bundled recipes, or of the files of a folder among them, sorted."""
    files = [item.name for item in _directory(folder).iterdir()]
    return sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))


def read(name: str, folder: str = "") -> str:
    """The text of the document of this name. Raises RecipeError when there is none."""
    if name not in names(folder):
        kind = _NOUNS.get(folder, "configuration")
        hint = suggestion(name, names(folder), f"bundled {kind}s")
        raise RecipeError([Fault("", f"found no bundled {kind} {show(name)}; {hint}")])
    return (_directory(folder) / f"{name}{_SUFFIX}").read_text("utf-8")


def is_bundled(name: str, text: str) -> bool:
    """Whether a recipe of this name and text is the bundled one, and not a file of the user's."""
    return name in names() and read(name) == text
