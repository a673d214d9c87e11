"""A recipe that was converted: its data and text, and where in the mergekit file each part of it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from surgery.errors import Fault
from surgery.source import Path, Source


@dataclass(frozen=True, slots=True)
class Converted(Source):
    """A recipe as `surgery.recipe` reads it; faults are told with the lines and paths of the file that it comes from.

    `models` are the checkpoints that the file names, by role, in the order of the recipe's roles. `notes` say what has
    no effect or differs. `places` are the paths of the file by those of the recipe.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[Fault, ...] = ()
    places: Mapping[Path, Path] = field(default_factory=dict)
    original: Source = field(default_factory=lambda: Source("", "", None))

    def line(self, path: Path) -> int | None:
        """The line of the mergekit file that this part of the recipe comes from."""
        return self.original.line(self._place(path))

    def where(self, path: Path, line: int | None = None) -> str:
        """`merge.yml:9 parameters.t`."""
        return self.original.where(self._place(path), line)

    def _place(self, path: Path) -> Path:
        return next((self.places[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.places), ())
