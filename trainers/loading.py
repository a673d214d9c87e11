"""From YAML to a configuration, with everything that is wrong with it at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from surgery.document import read_map
from surgery.errors import Fault, RecipeError
from surgery.parameters import read_setting
from surgery.source import Mistake, Source
from surgery.source import Path as FieldPath
from surgery.validation import mistakes
from surgery.wording import show
from trainers.config import Section
from trainers.errors import ConfigError

FOLDER = "train"  # of the bundled configurations, beside the recipes
LAUNCHER = f"{FOLDER}/accelerate"  # of those for `accelerate launch`
_GIVEN = {"model": "`--model MODEL`", "out": "`--out OUT`"}  # keys that the command line has options for

Config = TypeVar("Config", bound=Section)


def load(
    kind: type[Config],
    source: str | Path | Mapping[str, Any],
    settings: Mapping[str, object] = MappingProxyType({}),
    given: Mapping[str, str | None] = MappingProxyType({}),
) -> Config:
    """Read and validate the configuration of a trainer.

    `source` is a file, the name of a bundled configuration (where there is no file of that name), or a mapping.
    `settings` replaces values by the path of their keys, such as `optimizer.learning_rate`; text is read as YAML.
    `given` replaces keys by text as it is; None leaves a key alone. Raises ConfigError with all faults.
    """
    try:
        read = read_map(source, "configuration", FOLDER, "keys such as `model`, `out` and `data`")
    except RecipeError as error:  # YAML is read as for recipes
        raise ConfigError(error.faults) from error
    assert isinstance(read.data, dict)
    data, faults, origins = _overridden(read.data, settings)
    for key, value in given.items():
        if value is not None:
            data[key] = value
    return _validated(kind, read, data, faults, origins)


def _validated(
    kind: type[Config],
    source: Source,
    data: dict[str, Any],
    faults: list[Fault],
    origins: Mapping[FieldPath, str],
) -> Config:
    wrong = [mistake for mistake in source.mistakes if not _around(mistake.path, origins)]
    try:
        config = kind.model_validate_json(json.dumps(data), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        void = [mistake.path for mistake in wrong if mistake.void]
        for mistake in mistakes(error, kind, data, (), void):
            origin = _around(mistake.path, origins)
            option = _GIVEN.get(mistake.message.partition("`")[2].partition("`")[0]) if not mistake.path else None
            more = f"; or give {option}" if option and "is missing" in mistake.message else ""
            if origin:
                faults.append(Fault(f"--set {origin}", mistake.message))
            else:
                wrong.append(Mistake(mistake.path, mistake.message + more, mistake.line, mistake.void))
    else:
        if not wrong and not faults:
            return config
    raise ConfigError([*faults, *source.faults(wrong)])


def _around(path: FieldPath, origins: Mapping[FieldPath, str]) -> str | None:
    """The setting that gave the value at a path, or around it."""
    outer = (path[:end] for end in range(len(path), 0, -1))
    return next((origins[part] for part in outer if part in origins), None)


def _overridden(
    data: Mapping[str, Any], settings: Mapping[str, object]
) -> tuple[dict[str, Any], list[Fault], dict[FieldPath, str]]:
    """The data with the settings put in, what is wrong with these, and which paths they gave."""
    changed: dict[str, Any] = json.loads(json.dumps(data))
    faults: list[Fault] = []
    origins: dict[FieldPath, str] = {}
    for name, setting in settings.items():
        where = f"--set {name}"
        try:
            value, wrong = read_setting(setting, where)
        except RecipeError as error:
            faults += [Fault(where, fault.message) for fault in error.faults]
            continue
        if wrong:
            faults += [Fault(where, mistake.message) for mistake in wrong]
            continue
        *outer, last = path = name.split(".")
        if not all(path):
            faults.append(Fault(where, f"found {show(name)}; expected keys with a dot between them"))
            continue
        section: Any = changed
        for key in outer:
            section = section.setdefault(key, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            faults.append(Fault(where, f"found no map at {show('.'.join(outer))} to set {show(last)} in"))
            continue
        section[last] = value
        origins[tuple(path)] = name
    return changed, faults, origins
