"""A recipe's parameters: declared values, `--set`, and `$name` in slices, steps and output."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from surgery.errors import Fault, RecipeError
from surgery.mapping_source import read_mapping
from surgery.source import Mistake, Path
from surgery.wording import did_you_mean, show, suggestion
from surgery.yaml_source import read_yaml

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")  # of parameters and of roles
NAME_RULE = "letters, digits, `_` and `-`, not starting with a digit or `-`"
REFERENCE = re.compile(rf"\$({NAME.pattern})")
OUTPUT = "output"
_OUTPUT_SETTINGS = tuple(
    f"{OUTPUT}.{key}"
    for key in ("dtype", "shard_size", "tokenizer", "vocabulary", "tokens", "pad_vocabulary_to", "chat_template")
)


class Substitution:
    """The data of a recipe with its parameters and settings put in.

    `data` is the new data, `parameters` the values in force, `mistakes` and `faults` (those of settings) what
    was wrong, and `void` the paths that got the value of a parameter that is wrong itself (declared in a wrong
    way, or in `mistaken`). Settings override declared parameters; `output.KEY` overrides a key of the output section.
    Text in settings is read as YAML (`40%`, `[0.5, 0.5]`).
    """

    def __init__(
        self, data: Mapping[str, object], settings: Mapping[str, object], mistaken: Iterable[str] = ()
    ) -> None:
        self.data = dict(data)
        self.mistakes: list[Mistake] = []
        self.faults: list[Fault] = []
        self.void: list[Path] = []
        self._mistaken = set(mistaken)
        self._settings = settings
        self._origins: dict[Path, str] = {}
        self._used: set[str] = set()
        declared = data.get("parameters")
        self.parameters: dict[str, object] = dict(declared) if isinstance(declared, dict) else {}
        for name, value in self.parameters.items():
            self._check_declaration(name, value)
        given = self._read_settings()
        self.parameters.update((key, value) for key, value in given.items() if key in self.parameters)
        self._substitute()
        self._override_output({key: value for key, value in given.items() if key not in self.parameters})
        if isinstance(declared, dict):
            self.data["parameters"] = self.parameters
            self._check_use()

    def origin(self, path: Path) -> str | None:
        """Where a value that does not stand at this path in the text comes from: `from parameter x`."""
        around = (path[:end] for end in range(len(path), 0, -1))
        return next((self._origins[outer] for outer in around if outer in self._origins), None)

    def _check_declaration(self, name: str, value: object) -> None:
        if not NAME.fullmatch(name):
            message = f"found the parameter {show(name)}; expected a name of {NAME_RULE}"
            self.mistakes.append(Mistake(("parameters", name), message))
        elif isinstance(value, str) and REFERENCE.match(value):
            message = f"found {show(value)}; a parameter's value cannot refer to another parameter"
            self._mistaken.add(name)
            self.mistakes.append(Mistake(("parameters", name), message))

    def _check_use(self) -> None:
        for name in self.parameters:
            if name not in self._used and NAME.fullmatch(name):
                message = f"nothing uses this parameter; write `${name}` where it belongs, or remove it"
                self.mistakes.append(Mistake(("parameters", name), message))

    def _read_settings(self) -> dict[str, object]:
        """The values that the settings mean."""
        given: dict[str, object] = {}
        for key, setting in self._settings.items():
            where = self._spell(key)
            if key not in self.parameters and not key.startswith(f"{OUTPUT}."):
                known = suggestion(key, [*self.parameters, *_OUTPUT_SETTINGS], "what can be set")
                message = f"unknown parameter {show(key)}; {known}"
                self.faults.append(Fault(where, message))
                continue
            try:
                value, mistakes = read_setting(setting, where)
                faults = [Fault(where, mistake.message) for mistake in mistakes]
                given[key] = value
            except RecipeError as error:
                faults = [Fault(where, fault.message) for fault in error.faults]
            self.faults += faults
            self._mistaken -= {key}
            self._mistaken |= {key} if faults else set()
        return given

    def _spell(self, key: str) -> str:
        setting = self._settings[key]
        text = setting if isinstance(setting, str) else show(setting).strip("`")
        return show(f"--set {key}={text}").strip("`")

    def _substitute(self) -> None:
        """Replace `$name` below the keys of slices, steps and output; `op` is no parameter."""
        slices = self.data.get("slices")
        if isinstance(slices, list):
            self.data["slices"] = self._replaced(slices, ("slices",))
        steps = self.data.get("steps")
        if isinstance(steps, list):
            self.data["steps"] = [self._step(step, ("steps", i)) for i, step in enumerate(steps)]
        output = self.data.get(OUTPUT)
        if isinstance(output, dict):
            self.data[OUTPUT] = self._replaced(output, (OUTPUT,))

    def _step(self, step: object, path: Path) -> object:
        if not isinstance(step, dict):
            return step
        return {key: item if key == "op" else self._replaced(item, (*path, key)) for key, item in step.items()}

    def _replaced(self, value: object, path: Path) -> object:
        if isinstance(value, dict):
            return {key: self._replaced(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._replaced(item, (*path, i)) for i, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        if value.startswith("$"):
            return self._value_of(value[1:], path)
        inside = REFERENCE.search(value)
        if inside and inside[1] in self.parameters:
            self._used.add(inside[1])
            expected = f"expected `{inside[0]}` alone: put the whole value into the parameter"
            self.mistakes.append(Mistake(path, f"found {show(value)}; {expected}"))
        return value

    def _value_of(self, name: str, path: Path) -> object:
        if name in self.parameters:
            self._used.add(name)
            if name in self._mistaken:
                self.void.append(path)
            given = name in self._settings
            self._origins[path] = f"from `{self._spell(name)}`" if given else f"from parameter `{name}`"
            return self.parameters[name]
        near = did_you_mean(name, self.parameters)
        if near is not None:
            self._used.add(near)  # as meant: that it is unused would be a second message for one slip
        known = suggestion(f"${name}", [f"${parameter}" for parameter in self.parameters], "parameters")
        self.mistakes.append(Mistake(path, f"unknown parameter {show(f'${name}')}; {known}"))
        return None

    def _override_output(self, given: Mapping[str, object]) -> None:
        output = self.data.get(OUTPUT)
        if not given or not isinstance(output, dict | None):
            return
        for key in given:
            path = (OUTPUT, key.removeprefix(f"{OUTPUT}."))
            self._origins[path] = f"from `{self._spell(key)}`"
            if key in self._mistaken:
                self.void.append(path)
        overrides = {key.removeprefix(f"{OUTPUT}."): value for key, value in given.items()}
        self.data[OUTPUT] = {**(output or {}), **overrides}


def read_setting(setting: object, where: str) -> tuple[object, tuple[Mistake, ...]]:
    """The value that a setting means, text being YAML, and what is wrong with it. Raises RecipeError, too."""
    if isinstance(setting, str):
        source = read_yaml(setting, where)
        return source.data, source.mistakes
    source = read_mapping({"value": setting}, where)
    assert isinstance(source.data, dict)
    return source.data["value"], source.mistakes
