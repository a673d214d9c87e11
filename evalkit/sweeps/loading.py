"""From YAML to a sweep, with everything that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.errors import SweepError
from evalkit.sweeps.spec import Sweep
from surgery.document import read_map, validated
from surgery.errors import RecipeError
from surgery.source import Source

FOLDER = "sweeps"  # of the bundled ones, beside the recipes


def load(source: str | Path | Mapping[str, Any]) -> tuple[Sweep, Source]:
    """Read and validate a sweep: a file, a bundled one's name, or a mapping. Raises SweepError with all faults."""
    try:
        read = read_map(source, "sweep", FOLDER, "the keys `name`, `models`, `variants` and `evaluation`")
        return validated(Sweep, read), read
    except RecipeError as error:  # read and validated as recipes are
        raise SweepError(error.faults) from error


def beside(name: str, source: Source) -> Path | None:
    """The file of that name beside the sweep's own, or else where the command was run; None if there is neither."""
    for path in (Path(source.origin).parent / name, Path(name)):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # no file has such a name
            continue
    return None
