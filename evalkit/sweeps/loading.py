"""From YAML to a sweep, with everything that is wrong with it at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evalkit.errors import SweepError
from evalkit.sweeps.spec import Sweep
from surgery.document import read_document
from surgery.errors import RecipeError
from surgery.mapping_source import read_mapping
from surgery.source import Mistake, Source
from surgery.validation import mistakes
from surgery.wording import show

FOLDER = "sweeps"  # of the bundled ones, beside the recipes


def load(source: str | Path | Mapping[str, Any]) -> tuple[Sweep, Source]:
    """Read and validate a sweep: a file, a bundled one's name, or a mapping. Raises SweepError with all faults."""
    try:
        read = read_mapping(source, "sweep") if isinstance(source, Mapping) else read_document(source, "sweep", FOLDER)
    except RecipeError as error:  # YAML is read as for recipes
        raise SweepError(error.faults) from error
    if not isinstance(read.data, dict):
        found = "the sweep is empty" if read.data is None else f"found {show(read.data)}"
        message = f"{found}; expected a map with the keys `name`, `models`, `variants` and `evaluation`"
        raise SweepError(read.faults([Mistake((), message, line=1), *read.mistakes]))
    wrong = [*read.mistakes]
    try:
        sweep = Sweep.model_validate_json(json.dumps(read.data), strict=True)
    except ValidationError as error:
        void = [mistake.path for mistake in wrong if mistake.void]
        wrong += mistakes(error, Sweep, read.data, (), void)
    else:
        if not wrong:
            return sweep, read
    raise SweepError(read.faults(wrong))


def beside(name: str, source: Source) -> Path | None:
    """The file of that name beside the sweep's own, or else where the command was run; None if there is neither."""
    for path in (Path(source.origin).parent / name, Path(name)):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # no file has such a name
            continue
    return None
