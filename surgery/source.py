"""Plain data together with where each part of it was written."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from surgery.errors import Fault

Path = tuple[str | int, ...]

_NO_TEXT = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, Unicode's line and paragraph separators
MAX_DEPTH = 32  # levels of nesting; a recipe needs 5
MAX_NODES = 10_000  # scalars, lists and maps
MAX_TEXT = 10_000  # characters of one value
MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong at a path of the data; `line` where it is not the line of the path.

    `void` says that the value there means nothing, so that whatever else is wrong with it is noise.
    """

    path: Path
    message: str
    line: int | None = None
    void: bool = True


@dataclass(frozen=True, slots=True)
class Source:
    """What a recipe was read from.

    `data` holds dicts with text keys, lists, and finite scalars only. `lines` gives the line, from 1, of each
    path's key or list item; it is empty for data that came from Python.
    """

    origin: str
    text: str
    data: object
    lines: Mapping[Path, int] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()

    def line(self, path: Path) -> int | None:
        """The line of the path, or of the nearest thing around it that was written down."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None

    def where(self, path: Path, line: int | None = None) -> str:
        """`recipe.yaml:9 steps[0].head`; no line for data from Python, no path for the whole."""
        line = self.line(path) if line is None else line
        start = self.origin if line is None else f"{self.origin}:{line}"
        return f"{start} {spell(path)}".strip()

    def faults(self, mistakes: Iterable[Mistake]) -> list[Fault]:
        """The mistakes with their places, by line."""
        placed = [(self.line(m.path) if m.line is None else m.line, m) for m in mistakes]
        placed.sort(key=lambda pair: pair[0] or 0)
        return [Fault(self.where(m.path, line), m.message) for line, m in placed]


def text_fault(text: str) -> str | None:
    """What is wrong with a text as a value or key, or None: its length, or characters that are none."""
    if len(text) > MAX_TEXT:
        return f"a value of {len(text):,} characters; expected at most {MAX_TEXT:,}"
    bad = next((c for c in text if c not in "\n\t" and unicodedata.category(c) in _NO_TEXT), None)
    return f"found the character U+{ord(bad):04X}; expected printable text" if bad else None


def spell(path: Path) -> str:
    """`("steps", 0, "head")` as `steps[0].head`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")
