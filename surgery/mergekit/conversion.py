"""Makes a recipe of ours from a recipe file of mergekit, or says why that cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from pathlib import PureWindowsPath
from typing import Any

from surgery.document import validated
from surgery.errors import Fault, RecipeError
from surgery.mergekit.converted import Converted
from surgery.mergekit.groups import Group, group_of_models, groups_of_slices
from surgery.mergekit.merge_file import MergeFile
from surgery.mergekit.methods import KNOWN, METHODS, Method
from surgery.mergekit.names import roles as roles_of
from surgery.mergekit.slices import moved_filters, slices_of, steps_of, wrong_lengths
from surgery.mergekit.step import Step, make_step
from surgery.mergekit.text import recipe_text
from surgery.mergekit.tokens import tokens_of
from surgery.source import Mistake, Path, Source
from surgery.wording import show, suggestion
from surgery.yaml_source import USED_TWICE

EXACT = ("linear", "slerp", "passthrough")  # mergekit computes these in float32 whatever `dtype` says, or not at all

OLDER = ("embed_slerp",)  # parameters of earlier versions, which files on the hub still have
VERSION = "0.1.5"

_SIGNS = ("merge_method", "base_model", "modules", "experts")  # keys that a recipe of ours does not have
_IGNORED = "mergekit ignores it"
_MISPLACED = {  # what people write where mergekit does not look
    **dict.fromkeys(KNOWN, "put it under `parameters`"),
    "revision": "write `model: org/name@REVISION`",
}


def is_merge_file(data: object) -> bool:
    """Whether a document is a file of mergekit, and none of ours."""
    return isinstance(data, dict) and "steps" not in data and any(sign in data for sign in _SIGNS)


def convert(read: Source) -> Converted:
    """The recipe that does what a mergekit file asks for. Raises RecipeError with everything that cannot be."""
    file = _read(read)
    method = METHODS.get(file.merge_method)
    if method is None:
        hint = suggestion(file.merge_method, METHODS, "the methods are")
        message = f"unknown merge method {show(file.merge_method)}; {hint}"
        raise RecipeError(read.faults([Mistake(("merge_method",), message)]))
    return _Conversion(read, file, method).converted()


def _read(read: Source) -> MergeFile:
    assert isinstance(read.data, dict)
    if "experts" in read.data:
        message = "found `experts`, which mergekit-moe makes a mixture of; this is not supported"
        raise RecipeError(read.faults([Mistake(("experts",), message)]))
    try:
        return validated(MergeFile, read, _neither_or_both)
    except RecipeError as error:
        raise RecipeError([Fault(fault.where, _for_mergekit(fault.message)) for fault in error.faults]) from None


def _for_mergekit(message: str) -> str:
    """A message about a document of ours as one about a file of mergekit."""
    message = message.replace(USED_TWICE, "write such values out where they are used")
    unknown = re.match("unknown key `(.+?)`; ", message)
    if unknown is None or _IGNORED in message:
        return message
    advice = _MISPLACED.get(unknown[1])
    return f"{unknown[0]}{advice} ({_IGNORED})" if advice else f"{message} ({_IGNORED})"


def _neither_or_both(data: Mapping[str, Any]) -> list[Mistake]:
    given = [key for key in ("models", "slices", "modules") if data.get(key)]
    if len(given) == 1:
        return []
    found = " and ".join(f"`{key}`" for key in given) or "neither `models` nor `slices`"
    return [Mistake((given[-1],) if given else (), f"found {found}; expected one of `models` and `slices`")]


class _Conversion:
    def __init__(self, read: Source, file: MergeFile, method: Method) -> None:
        self.read = read
        self.file = file
        self.name = file.merge_method
        self.method = method
        self.mistakes: list[Mistake] = []
        self.notes: dict[Path, str] = {}
        self.groups = self._groups()
        models = dict.fromkeys(member.model for group in self.groups for member in group.members)
        ordered = list(models) if file.base_model is None else list(dict.fromkeys([file.base_model, *models]))
        self.roles = dict(zip(ordered, roles_of(ordered), strict=True))
        self.tokens = tokens_of(file, self.groups, self.roles)
        self.mistakes += self.tokens.mistakes

    def _groups(self) -> list[Group]:
        if not self.file.slices:
            return [group_of_models(self.file)]
        groups = groups_of_slices(self.file)
        self.mistakes += [*wrong_lengths(groups), *moved_filters(groups, self.method)]
        return groups

    def _steps(self) -> list[tuple[Group, Step]]:
        if self.file.slices:
            start = self.roles[self.tokens.start]
            return steps_of(self.name, self.method, self.groups, self.roles, start)
        return [(group, make_step(self.name, self.method, group, self.roles)) for group in self.groups]

    def converted(self) -> Converted:
        """The recipe. Raises RecipeError."""
        steps = self._steps()
        self.mistakes += [mistake for _, step in steps for mistake in step.mistakes]
        self._check_names()
        if self.mistakes:
            raise RecipeError(self.read.faults({(m.path, m.message): m for m in self.mistakes}.values()))
        self._note_differences()
        data = self._data(steps)
        file = replace(self.read, origin=FilePath(self.read.origin).name)  # where it lies is nobody else's business
        notes = file.faults(Mistake(path, message) for path, message in self.notes.items())
        above = [f"Converted from {file.origin}, a recipe file of mergekit.", *map(str, notes)]
        models = {role: model for model, role in self.roles.items()}
        beside: dict[Path, str] = {("models", i): _shown(model) for i, model in enumerate(models.values())}
        beside["start",] = "the output gets its config and tokenizer, and is divided into files like it"
        return Converted(
            origin=self.read.origin,
            text=recipe_text(data, above, beside),
            data=data,
            models=models,
            notes=tuple(notes),
            places=self._places(steps),
            original=self.read,
        )

    def _data(self, steps: Sequence[tuple[Group, Step]]) -> dict[str, Any]:
        roles = list(self.roles.values())
        data: dict[str, Any] = {"name": _recipe_name(self.file.name or FilePath(self.read.origin).stem)}
        data["summary"] = f"{self.name} of {', '.join(roles)}, as mergekit's {FilePath(self.read.origin).name} says"
        data["models"] = roles
        if self.file.slices:
            data["slices"] = slices_of(self.groups, self.roles)
        data["start"] = self.roles[self.tokens.start]
        if steps:
            data["steps"] = [step.data for _, step in steps]
        output = {"dtype": self.file.out_dtype or self.file.dtype, "vocabulary": self.tokens.vocabulary}
        if any(output.values()):
            data["output"] = {key: value for key, value in output.items() if value is not None}
        return data

    def _places(self, steps: Sequence[tuple[Group, Step]]) -> dict[Path, Path]:
        places: dict[Path, Path] = {("name",): ("name",) if self.file.name else ()}
        places["slices",] = ("slices",)
        places.update(dict.fromkeys([("start",), ("output",), ("output", "vocabulary")], self.tokens.place))
        places["output", "dtype"] = ("out_dtype",) if self.file.out_dtype else ("dtype",)
        for i, (group, step) in enumerate(steps):
            places["steps", i] = group.place
            places.update({("steps", i, key): place for key, place in step.places.items()})
        for i, group in enumerate(self.groups):
            for member in group.members:
                places.setdefault(("models", list(self.roles).index(member.model)), member.place)
                places["slices", i, self.roles[member.model]] = (*member.place, "layer_range")
            places["slices", i] = group.place
        return places

    def _check_names(self) -> None:
        """Parameters that mergekit does not know are mistakes; of those that it does not look at there are notes."""
        for place, settings, owner, base in self._settings():
            for name in settings:
                if name in OLDER:
                    self.notes[*place, name] = f"no effect, in mergekit {VERSION} either"
                elif name not in KNOWN:
                    hint = suggestion(name, sorted(KNOWN), "the parameters are")
                    self.mistakes.append(
                        Mistake((*place, name), f"unknown parameter {show(name)}; {hint} ({_IGNORED})")
                    )
                elif (why := self._without_effect(name, owner, base)) is not None:
                    self.notes[*place, name] = why

    def _settings(self) -> Iterator[tuple[Path, Mapping[str, Any], str | None, str | None]]:
        """All settings once, with their place, the model that they are for, or None, and the base model there."""
        for group in self.groups:
            for member in group.members:
                yield from (
                    (x.place, x.settings, member.model, group.base) for x in member.levels if x not in group.levels
                )
            yield from ((x.place, x.settings, None, group.base) for x in group.levels)

    def _without_effect(self, name: str, owner: str | None, base: str | None) -> str | None:
        """Why a parameter is dropped, or None."""
        reason = dict(self.method.without_effect).get(name)
        if reason is not None:
            return f"no effect here: {reason}"
        parameter = self.method.parameter(name)
        if parameter is None:
            return f"no effect with `{self.name}`, in mergekit either"
        if owner is not None and parameter.scope == "shared":
            return "no effect for a single model, in mergekit either"
        if owner is not None and parameter.scope == "others" and owner == base:
            return "no effect for the base model, in mergekit either"
        return None

    def _note_differences(self) -> None:
        if self.tokens.notes:
            self.notes[self.tokens.place] = "; ".join(self.tokens.notes)
        if self.file.dtype in ("bfloat16", "float16") and self.name not in EXACT:
            self.notes["dtype",] = (
                f"mergekit also computes in {self.file.dtype}; here that is done in float32, and rounded once"
            )
        if self.method.random:
            self.notes["merge_method",] = (
                "mergekit's random masks differ from run to run; here they follow from `seed`, a field of the operation"
            )


def _recipe_name(text: str) -> str:
    found = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:100]
    return found or "merge"


def _shown(model: str) -> str:
    """A model as the text names it; of an absolute path, which is nobody else's business, the last part."""
    return "+".join(map(_last_if_absolute, model.split("+")))


def _last_if_absolute(path: str) -> str:
    absolute = path.startswith(("/", "~")) or PureWindowsPath(path).is_absolute()
    return PureWindowsPath(path).name if absolute else path
