"""The recipes that come with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.errors import Fault, RecipeError
from surgery.wording import show, suggestion

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_SUFFIX = ".yaml"


def _directory() -> Traversable:
    """`surgery/_recipes` of an installed package, `recipes` beside `surgery` in a source tree."""
    installed = resources.files("surgery") / "_recipes"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "recipes"


def names() -> list[str]:
    """The names of the bundled recipes, sorted."""
    files = [item.name for item in _directory().iterdir()]
    return sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))


def read(name: str) -> str:
    """The text of the recipe of this name. Raises RecipeError when there is none."""
    if name not in names():
        hint = suggestion(name, names(), "bundled recipes")
        raise RecipeError([Fault("", f"found no bundled recipe {show(name)}; {hint}")])
    return (_directory() / f"{name}{_SUFFIX}").read_text("utf-8")
