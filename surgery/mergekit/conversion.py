"""Makes a recipe of ours from a recipe file of mergekit, or says why that cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from pathlib import PureWindowsPath
from typing import Any

from surgery.errors import RecipeError
from surgery.mergekit.chat_formats import template_of
from surgery.mergekit.converted import Converted
from surgery.mergekit.groups import Group, groups_of
from surgery.mergekit.merge_file import MergeFile
from surgery.mergekit.methods import KNOWN, METHODS, Method
from surgery.mergekit.names import located
from surgery.mergekit.names import roles as roles_of
from surgery.mergekit.reading import IGNORED, read_merge_file
from surgery.mergekit.remarks import remarks_of
from surgery.mergekit.slices import moved_filters, slices_of, steps_of, wrong_lengths
from surgery.mergekit.step import Step, make_step
from surgery.mergekit.text import recipe_text
from surgery.mergekit.tokens import tokens_of
from surgery.source import Mistake, Path, Source
from surgery.wording import show, suggestion

# Parameters of earlier versions and of mergekit-evolve, which files on the hub still have.
OF_OTHERS = ("embed_slerp", "smooth", "allow_negative_weights")
VERSION = "0.1.5"


def convert(read: Source) -> Converted:
    """The recipe that does what a mergekit file asks for. Raises RecipeError with everything that cannot be."""
    read, file = read_merge_file(read)
    method = METHODS.get(file.merge_method)
    if method is None:
        hint = suggestion(file.merge_method, METHODS, "the methods are")
        message = f"unknown merge method {show(file.merge_method)}; {hint}"
        raise RecipeError(read.faults([Mistake(("merge_method",), message)]))
    return _Conversion(read, file, method).converted()


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
        groups = groups_of(self.file)
        if not groups[0].layers:
            return groups
        self.mistakes += [*wrong_lengths(groups), *moved_filters(groups, self.method)]
        return groups

    def _steps(self) -> list[tuple[Group, Step]]:
        if self.groups[0].layers:
            start = self.roles[self.tokens.start]
            return steps_of(self.name, self.method, self.groups, self.roles, start)
        return [(group, make_step(self.name, self.method, group, self.roles)) for group in self.groups]

    def _seeded(self, step: Step) -> Step:
        """The step with the seed that the file names."""
        if not self.method.random or self.file.random_seed is None:
            return step
        places = {**step.places, "seed": ("random_seed",)}
        return replace(step, data={**step.data, "seed": self.file.random_seed}, places=places)

    def converted(self) -> Converted:
        """The recipe. Raises RecipeError."""
        steps = [(group, self._seeded(step)) for group, step in self._steps()]
        self.mistakes += [mistake for _, step in steps for mistake in step.mistakes]
        self._check_names()
        if self.mistakes:
            raise RecipeError(self.read.faults({(m.path, m.message): m for m in self.mistakes}.values()))
        self.notes.update(remarks_of(self.file, self.method.random))
        if self.tokens.notes:
            self.notes[self.tokens.place] = "; ".join(self.tokens.notes)
        data = self._data(steps)
        file = replace(self.read, origin=FilePath(self.read.origin).name)  # where it lies is nobody else's business
        notes = file.faults(Mistake(path, message) for path, message in self.notes.items())
        above = [f"Converted from {file.origin}, a recipe file of mergekit.", *map(str, notes)]
        models = {role: located(model) for model, role in self.roles.items()}
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
        if self.groups[0].layers:
            data["slices"] = slices_of(self.groups, self.roles)
        data["start"] = self.roles[self.tokens.start]
        if steps:
            data["steps"] = [step.data for _, step in steps]
        output = {"dtype": self.file.out_dtype or self.file.dtype, **self.tokens.output}
        if self.file.chat_template:
            output["chat_template"] = template_of(self.file.chat_template)
        if any(output.values()):
            data["output"] = {key: value for key, value in output.items() if value is not None}
        return data

    def _places(self, steps: Sequence[tuple[Group, Step]]) -> dict[Path, Path]:
        places: dict[Path, Path] = {("name",): ("name",) if self.file.name else ()}
        places["slices",] = ("slices",)
        places.update(dict.fromkeys([("start",), ("output",), ("output", "vocabulary")], self.tokens.place))
        places["output", "tokens"] = ("tokenizer", "tokens")
        places["output", "pad_vocabulary_to"] = ("tokenizer", "pad_to_multiple_of")
        places["output", "chat_template"] = ("chat_template",)
        places.update(
            {("output", "tokens", text): ("tokenizer", "tokens", text) for text in self.tokens.output.get("tokens", {})}
        )
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
                if name in OF_OTHERS:
                    self.notes[*place, name] = f"no effect, in mergekit {VERSION} either"
                elif name not in KNOWN:
                    hint = suggestion(name, sorted(KNOWN), "the parameters are")
                    self.mistakes.append(Mistake((*place, name), f"unknown parameter {show(name)}; {hint} ({IGNORED})"))
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


def _recipe_name(text: str) -> str:
    found = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:100]
    return found or "merge"


def _shown(model: str) -> str:
    """A model as the text names it; of an absolute path, which is nobody else's business, the last part."""
    return "+".join(map(_last_if_absolute, model.split("+")))


def _last_if_absolute(path: str) -> str:
    absolute = path.startswith(("/", "~")) or PureWindowsPath(path).is_absolute()
    return PureWindowsPath(path).name if absolute else path
