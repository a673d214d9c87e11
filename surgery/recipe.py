"""The recipe format: models, loading, and everything that can be wrong with a recipe alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticKnownError

from surgery.document import read_document
from surgery.errors import Fault, RecipeError
from surgery.layers import LayerRangeField
from surgery.mapping_source import read_mapping
from surgery.mergekit import Converted, convert, is_merge_file
from surgery.ops import Step
from surgery.ops.base import RESULT, Op
from surgery.output_section import InputRole, Output
from surgery.parameters import NAME, NAME_RULE, Substitution
from surgery.source import Mistake, Path, Source
from surgery.validation import mistakes as mistakes_of
from surgery.wording import did_you_mean, quoted, show

_RECIPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _name(name: str) -> str:
    if not _RECIPE_NAME.fullmatch(name):
        raise ValueError(f"found {show(name)}; expected one word of letters, digits, `_`, `.` and `-`")
    return name


def _role(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"found {show(name)}; expected a role's name of {NAME_RULE}")
    if name == RESULT:
        raise ValueError(f"`{RESULT}` is reserved for the tensor being edited; expected another name")
    return name


RecipeName = Annotated[
    str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_RECIPE_NAME.pattern}$"})
]
RoleName = Annotated[
    str,
    AfterValidator(_role),
    WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$", "not": {"const": RESULT}}),
]
Slice = Annotated[dict[InputRole, LayerRangeField], Field(min_length=1)]  # of each role as many layers


class Recipe(BaseModel):
    """A resolved recipe: parameters are put in, defaults filled. Made by `load`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RecipeName = Field(description="the recipe's name, one word")
    summary: str = Field(default="", description="what the recipe does, in a sentence")
    models: tuple[RoleName, ...] = Field(
        min_length=1, description="roles; the checkpoints on the command line are bound to them in this order"
    )
    slices: Annotated[tuple[Slice, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="the output's layers, from the first to the last: in each slice some layers of one or several "
        "roles, which the steps work on together; those of the first role are edited",
    )
    start: InputRole = Field(
        default_factory=lambda data: next(iter(data["slices"][0])) if data["slices"] else data["models"][-1],
        description="the role of the checkpoint that the steps edit; default: the last of `models`. With `slices`: of "
        "that whose config and tensors outside the layers the output gets; default: the first of the first slice",
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="named values, used as `$name` in steps and output; `--set name=value` replaces them",
    )
    steps: tuple[Step, ...] = Field(
        default=(), validate_default=True, description="what to do, in order, on each tensor"
    )
    output: Output = Field(default_factory=Output, description="how the result is stored")

    _source: Source = PrivateAttr()
    _settings: dict[str, object] = PrivateAttr(default_factory=dict)

    @field_validator("models")
    @classmethod
    def _distinct(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted(name for name, count in Counter(models).items() if count > 1)
        if repeated:
            raise ValueError(f"found {quoted(repeated)} more than once; every role needs its own name")
        return models

    @field_validator("slices")
    @classmethod
    def _given(cls, slices: tuple[Slice, ...] | None) -> tuple[Slice, ...]:
        if slices is None:  # `slices:` with nothing after it; the default does not come here
            raise PydanticKnownError("list_type")
        return slices

    @field_validator("steps")
    @classmethod
    def _something_to_do(cls, steps: tuple[Op, ...], info: ValidationInfo) -> tuple[Op, ...]:
        if steps or info.data.get("slices", True):  # of wrong slices it is told what is wrong with them
            return steps
        if "steps" in (info.context or {}).get("keys", ()):
            raise PydanticKnownError("too_short", {"field_type": "Tuple", "min_length": 1, "actual_length": 0})
        raise PydanticKnownError("missing")

    @property
    def text(self) -> str:
        """The recipe as the user wrote it, or YAML made from a mapping."""
        return self._source.text

    @property
    def origin(self) -> str:
        """The file's path as given, `NAME.yaml` for a bundled recipe, or `recipe` for a mapping."""
        return self._source.origin

    @property
    def named(self) -> Mapping[str, str]:
        """The checkpoints that a mergekit file names, by role; a recipe of ours names none."""
        return self._source.models if isinstance(self._source, Converted) else {}

    @property
    def notes(self) -> tuple[Fault, ...]:
        """What was converted from a mergekit file with a word to say about it."""
        return self._source.notes if isinstance(self._source, Converted) else ()

    def where(self, step: int) -> str:
        """`recipe.yaml:9 steps[0]`."""
        return self.place(("steps", step))

    def place(self, path: Path) -> str:
        """`recipe.yaml:9 slices[0].base`, for `("slices", 0, "base")`."""
        return self._source.where(path)

    def canonical(self) -> dict[str, Any]:
        """All that decides the result, as plain JSON data that `load` reads back: no prose, no parameters."""
        without = {"summary", "parameters"}
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=without)


def load(
    source: str | FilePath | Mapping[str, Any] | Recipe, settings: Mapping[str, object] = MappingProxyType({})
) -> Recipe:
    """Read and validate a recipe.

    `source` is a file, the name of a bundled recipe (when there is no file of that name), a mapping, or a
    recipe to be changed by `settings`. A recipe file of mergekit is converted, see `surgery.mergekit`.
    `settings` maps parameters, or keys of the output section such as `output.dtype`, to values; text is read as YAML.
    Raises RecipeError with all faults at once.
    """
    settings = dict(settings)
    if isinstance(source, Recipe):
        return source if not settings else _resolve(source._source, {**source._settings, **settings})
    if isinstance(source, Mapping):
        return _resolve(read_mapping(source), settings)
    return _resolve(read_document(source, "recipe"), settings)


def _resolve(source: Source, settings: dict[str, object]) -> Recipe:
    if is_merge_file(source.data):
        source = convert(source)
    if not isinstance(source.data, dict):
        found = "the recipe is empty" if source.data is None else f"found {show(source.data)}"
        message = f"{found}; expected a map with the keys `name`, `models` and `steps`"
        raise RecipeError(source.faults([Mistake((), message, line=1), *source.mistakes]))
    mistaken = [str(m.path[1]) for m in source.mistakes if m.void and m.path[:1] == ("parameters",) and m.path[1:]]
    work = Substitution(source.data, settings, mistaken)
    models = work.data.get("models")
    roles = [role for role in models if isinstance(role, str)] if isinstance(models, list) else []
    wrong = [*source.mistakes, *work.mistakes]
    recipe: Recipe | None = None
    try:
        context = {"roles": roles or None, "keys": work.data.keys()}
        recipe = Recipe.model_validate_json(
            json.dumps(work.data), strict=True, by_alias=True, by_name=False, context=context
        )
    except ValidationError as error:
        void = [*work.void, *(mistake.path for mistake in wrong if mistake.void)]
        invalid = mistakes_of(error, Recipe, work.data, roles, void)
        wrong += [_with_origin(mistake, work) for mistake in invalid]
    wrong += _unused_roles(work.data, roles)
    if wrong or work.faults or recipe is None:
        raise RecipeError([*work.faults, *source.faults(wrong)])
    recipe._source, recipe._settings = source, settings
    return recipe


def _with_origin(mistake: Mistake, work: Substitution) -> Mistake:
    origin = work.origin(mistake.path)
    return replace(mistake, message=f"{mistake.message} ({origin})") if origin else mistake


def _unused_roles(data: Mapping[str, Any], roles: Sequence[str]) -> list[Mistake]:
    """Roles that are neither `start` nor named in `output`, named by no slice and read by no step.

    A wrong step or slice counts as using every role that it may mean; where it shows none, nothing is said.
    """
    slices, steps, output = data.get("slices", []), data.get("steps", []), data.get("output")
    if not isinstance(slices, list) or not isinstance(steps, list) or not (slices or steps):
        return []
    if not roles or len(set(roles)) < len(roles):
        return []
    first = next(iter(slices[0]), None) if slices and isinstance(slices[0], dict) else None
    start = data.get("start", first)
    used = {start if start in roles else did_you_mean(str(start), roles) or roles[-1]}
    used.update(_texts(output))
    names = [list(each) if isinstance(each, dict) else [] for each in slices]
    step_of: TypeAdapter[Op] = TypeAdapter(Step)
    context = {"roles": roles}
    for step in steps:
        try:
            used.update(step_of.validate_python(step, by_alias=True, by_name=False, context=context).reads)
        except ValidationError:
            names.append(_texts(step))
    for texts in names:
        meant = {name for text in texts if (name := did_you_mean(text, roles))}
        if not meant:
            return []
        used |= meant
    nobody = "no slice names `{0}`, no step reads it" if slices else "no step reads `{0}`"
    return [
        Mistake(("models", i), f"{nobody.format(role)}, and it is not `start`; use it or remove it")
        for i, role in enumerate(data["models"])
        if role in roles and role not in used
    ]


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *_texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
