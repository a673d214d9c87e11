"""What pydantic found wrong, in the words and paths of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from surgery.ops import OPS
from surgery.source import Mistake, Path
from surgery.wording import did_you_mean, quoted, show, suggestion

_EXPECTED = {  # pydantic's error type -> what was expected
    "bool_type": "`true` or `false`",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
}
_NOT_TEXT = {"bool_type", "int_type", "float_type"}  # say when what was found is text


def mistakes(
    error: ValidationError, model: type[BaseModel], data: object, roles: Sequence[str], void: Iterable[Path]
) -> list[Mistake]:
    """One mistake per path and cause.

    `model` is what `data` was validated against; branches of unions that pydantic puts into its locations
    are left out, and what the branches expected is joined. Nothing is said of the paths in `void`, nor of
    what was computed from the values there.
    """
    void = set(void)
    around_void = {path[:end] for path in void for end in range(len(path))}
    found: dict[tuple[Path, str], list[str]] = {}
    all_details = [(_path(details["loc"], data), details) for details in error.errors(include_url=False)]
    dropped = [path for path, _ in all_details if any(path[:end] in void for end in range(len(path) + 1))]
    accepted = {path[:end] for path in dropped for end in range(len(path))}  # by the branch that looked into them
    for path, details in all_details:
        if path in dropped or _follows(dict(details), path in around_void, path in accepted):
            continue
        start, end = _message(dict(details), path, model, data, roles)
        ends = found.setdefault((path, start), [])
        if end not in ends:
            ends.append(end)
    unknown = {path for path, start in found if start.startswith("unknown key")}
    return [
        Mistake(path, start + " or ".join(ends))
        for (path, start), ends in found.items()
        if not _is_respelt(path, start, unknown)
    ]


def _follows(details: dict[str, Any], around_void: bool, accepted: bool) -> bool:
    """Whether the error only follows from something that is reported anyway."""
    kind = details["type"]
    if accepted and kind.endswith("_type"):
        return True  # another branch of a union than the one that fails for a value without meaning
    if kind == "default_factory_not_called":
        return True
    if kind == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]:
        return True  # pydantic counts the valid items only
    return kind == "value_error" and around_void


def _is_respelt(path: Path, start: str, unknown: set[Path]) -> bool:
    """Whether a missing key stands beside an unknown one that was probably meant to be it."""
    missing = re.match(r"`(\w+)` is missing", start)
    beside = [str(other[-1]) for other in unknown if other[:-1] == path]
    return missing is not None and any(did_you_mean(name, [missing[1]]) for name in beside)


def _path(loc: tuple[int | str, ...], data: Any) -> Path:
    """The path in the data; what pydantic adds to it (the operation's tag, branches of unions) is dropped."""
    if loc[:1] == ("steps",):
        loc = loc[:2] + loc[3:]
    path: list[int | str] = []
    for part in loc:
        known = isinstance(data, dict) and part in data
        known |= isinstance(data, list) and isinstance(part, int) and part < len(data)
        if known:
            path.append(part)
            data = data[part]
    return tuple(path)


def _message(
    details: dict[str, Any], path: Path, model: type[BaseModel], data: object, roles: Sequence[str]
) -> tuple[str, str]:
    """The message in two parts; the second, what was expected, is joined over the branches of a union."""
    kind, found, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "missing":
        key = details["loc"][-1]
        return f"`{key}` is missing", _need(key, _model_at(path, model, data))
    if kind == "extra_forbidden":
        keys = _fields(_model_at(path[:-1], model, data))
        return f"unknown key {show(path[-1])}; ", suggestion(str(path[-1]), keys, "expected")
    if kind == "union_tag_invalid":
        known = suggestion(context["tag"], OPS, "the operations are")
        return f"unknown operation {show(context['tag'])}; ", known
    if kind == "union_tag_not_found":
        return "`op` is missing; ", f"the operations are: {quoted(OPS)}"
    if kind == "value_error":
        return _with_role(str(context["error"]), found, roles), ""
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = did_you_mean(found, choices) if isinstance(found, str) else None
        hint = f"; did you mean `{near}`?" if near else ""
        return f"found {show(found)}; expected ", quoted(choices) + hint
    text = "the text " if isinstance(found, str) and kind in _NOT_TEXT else ""
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"found {text}{show(found)}; ", details["msg"][:1].lower() + details["msg"][1:]
    if expected == "a list" and isinstance(found, str):
        expected = f"a list: {show(f'[{found}]')}"
    return f"found {text}{show(found)}; expected ", expected.format_map(context)


def _with_role(message: str, found: object, roles: Sequence[str]) -> str:
    near = did_you_mean(found, roles) if isinstance(found, str) and found not in roles else None
    return f"{message}; did you mean `{near}`?" if near and "did you mean" not in message else message


def _need(key: object, model: type[BaseModel] | None) -> str:
    """The end of a message about a missing key: what it is for."""
    field = _fields(model).get(str(key))
    op = next((f"; `{name}` needs it" for name, cls in OPS.items() if cls is model), "")
    text = field.description if field else None
    return f"{op}; expected {text[:1].lower()}{text[1:]}" if text else op


def _fields(model: type[BaseModel] | None) -> dict[str, FieldInfo]:
    """The fields by the keys that a recipe writes."""
    return {field.alias or name: field for name, field in model.model_fields.items()} if model else {}


def _model_at(path: Path, model: type[BaseModel], data: Any) -> type[BaseModel] | None:
    """The model that the map at this path is validated against."""
    at: type[BaseModel] | None = model
    named = False  # whether the next part is a name that the user chose
    for i, part in enumerate(path):
        data = data[part]
        if named:
            named = False
        elif path[:i] == ("steps",):
            op = data.get("op") if isinstance(data, dict) else None
            at = OPS.get(op) if isinstance(op, str) else None
        elif isinstance(part, str) and path[: i + 1] != ("steps",):
            field = _fields(at).get(part)
            at = next(_models_in(field.annotation), None) if field else None
            named = field is not None and any(get_origin(kind) is dict for kind in _branches(field.annotation))
    return at


def _branches(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or what is none."""
    return (annotation, *get_args(annotation))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
