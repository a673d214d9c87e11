"""The recipes that come with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

_SUFFIX = ".yaml"


def _directory() -> resources.abc.Traversable:
    """`surgery/_recipes` of an installed package, `recipes` beside `surgery` in a source tree."""
    installed = resources.files("surgery") / "_recipes"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "recipes"


def names() -> list[str]:
    """The names of the bundled recipes, sorted."""
    files = [item.name for item in _directory().iterdir()]
    return sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))


def read(name: str) -> str:
    """The text of the recipe of this name. Raises KeyError for a name that is not in `names()`."""
    if name not in names():
        raise KeyError(name)
    return (_directory() / f"{name}{_SUFFIX}").read_text("utf-8")
