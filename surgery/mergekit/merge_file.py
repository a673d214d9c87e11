"""The format of mergekit's recipe files, as far as recipes of ours can say the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from surgery.mergekit.chat_formats import check_template
from surgery.mergekit.settings import SettingField
from surgery.wording import quoted, show

_DTYPES = ("bfloat16", "float16", "float32")
_DOUBLE = "float64"


def _reference(value: object) -> str:
    """A model as `surgery` names it: a path, or a hub id with its revision; a LoRA adapter, named likewise, after `+`.

    Raises ValueError.
    """
    text = _spelt_out(value) if isinstance(value, Mapping) else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"found {show(text)}; expected a directory or a hub id `org/name[@revision]`")
    parts = text.split("+")
    if len(parts) > 2 or not all(part.strip() for part in parts):
        raise ValueError(f"found {show(text)}; expected `MODEL`, or `MODEL+ADAPTER` for a model with a LoRA adapter")
    if any(part.count("@") > 1 for part in parts):
        raise ValueError(f"found {show(text)}; expected one `@`, before the revision")
    return text


def _spelt_out(value: Mapping[str, Any]) -> str:
    """`{model: ..., lora: ...}` as one text. Raises ValueError."""
    if value.get("override_architecture") is not None:
        raise ValueError("found `override_architecture`; it is not supported: remove it")
    _check_keys(value, ("model", "lora", "override_architecture"))
    adapter = value.get("lora")
    return "+".join(_located(each) for each in [value.get("model"), *([] if adapter is None else [adapter])])


def _located(value: object) -> str:
    """`path@revision`, which may be spelt out, too: `{path: ..., revision: ...}`. Raises ValueError."""
    if not isinstance(value, Mapping):
        found = value
    else:
        _check_keys(value, ("path", "revision"))
        found, revision = value.get("path"), value.get("revision")
        if revision is not None and isinstance(found, str):
            found = f"{found}@{revision}"
    if not isinstance(found, str):
        raise ValueError(f"found {show(found)}; expected `path` and `revision` of a model or of an adapter")
    return found


def _check_keys(value: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        raise ValueError(f"found {show(unknown)}; expected {quoted(known)}")


def _dtype(value: str) -> str:
    found = value.removeprefix("torch.")
    if found not in _DTYPES:
        of_mergekit = " (mergekit refuses it, too)" if found == "auto" else ""
        expected = "`bfloat16`, `float16` or `float32`, which outputs may have"
        raise ValueError(f"found {show(value)}; expected {expected}{of_mergekit}")
    return found


def _dtype_or_double(value: str, info: ValidationInfo) -> str:
    """That of the arithmetic may be float64, where the output has another one."""
    if value.removeprefix("torch.") != _DOUBLE:
        return _dtype(value)
    if info.data.get("out_dtype") is None:
        raise ValueError(f"found {show(value)}; outputs may have `bfloat16`, `float16` or `float32`: add `out_dtype`")
    return _DOUBLE


def _or_none(wanted: Callable[[Any], object]) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value is None else wanted(value))


def _range(value: tuple[int, int]) -> tuple[int, int]:
    low, high = value
    if not 0 <= low < high:
        raise ValueError(f"found the layers from {low} up to {high}; expected `[FIRST, END]`, without END")
    return value


Reference = Annotated[str, BeforeValidator(_reference)]
Settings = Annotated[dict[str, SettingField], BeforeValidator(lambda value: {} if value is None else value)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class TokenSource:
    """A model, None for zeros, and the token whose row it is there, None for the same."""

    model: str | None
    token: str | int | None = None


def _token_source(value: object) -> TokenSource:
    """Raises ValueError."""
    if not isinstance(value, Mapping) or "kind" not in value:
        return TokenSource(_reference(value))
    kind = value["kind"]
    if kind == "zero":
        _check_keys(value, ("kind",))
        return TokenSource(None)
    if kind != "model_token":
        raise ValueError(f"found {show(kind)} for `kind`; expected `zero` or `model_token`")
    _check_keys(value, ("kind", "model", "token", "token_id"))
    given = [value[key] for key in ("token", "token_id") if value.get(key) is not None]
    if len(given) != 1:
        raise ValueError("expected one of `token` and `token_id` beside `kind: model_token`")
    kind_of = str if value.get("token") is not None else int
    if type(given[0]) is not kind_of or (isinstance(given[0], int) and given[0] < 0):
        raise ValueError(f"found {show(given[0])}; expected the text of a token as `token`, or its id as `token_id`")
    return TokenSource(_reference(value.get("model")), given[0])


class Token(_Part):
    """One of `tokens`: where its rows come from in models that lack it, or with `force` in all."""

    source: Annotated[TokenSource, BeforeValidator(_token_source)] = Field(description="where its row comes from")
    force: bool = False


class Input(_Part):
    """One of `models`."""

    model: Reference = Field(description="the path or the hub id of a model")
    parameters: Settings = Field(default_factory=dict)
    layer_range: Any = None  # people copy it here from slices; mergekit does not look at it


class SliceInput(_Part):
    """One of a slice's `sources`: the layers of a model from the first number up to, and without, the second."""

    model: Reference = Field(description="the path or the hub id of a model")
    parameters: Settings = Field(default_factory=dict)
    layer_range: Annotated[tuple[int, int], AfterValidator(_range)]


class Slice(_Part):
    """Some layers of the output, made from as many layers of each source."""

    sources: tuple[SliceInput, ...] = Field(min_length=1)
    base_model: Annotated[str | None, _or_none(_reference)] = None
    parameters: Settings = Field(default_factory=dict)
    residual_weight: float | None = None  # mergekit reads it, and does nothing with it


class Module(_Part):
    """One of `modules`: a part of an architecture that has several, or, as `default`, the whole of one that has not."""

    models: tuple[Input, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    parameters: Settings = Field(default_factory=dict)


class Tokenizer(_Part):
    """The section `tokenizer`."""

    source: Reference = "union"
    tokens: dict[str, Token] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


class MergeFile(_Part):
    """A recipe file of mergekit."""

    name: str | None = None
    merge_method: str = Field(description="what to do with the models")
    models: tuple[Input, ...] | None = Field(default=None)
    slices: tuple[Slice, ...] | None = None
    modules: dict[str, Module] | None = None
    base_model: Annotated[str | None, _or_none(_reference)] = None
    parameters: Settings = Field(default_factory=dict)
    out_dtype: Annotated[str, AfterValidator(_dtype)] | None = None
    dtype: Annotated[str, AfterValidator(_dtype_or_double)] | None = None
    tokenizer_source: Annotated[str | None, _or_none(_reference)] = None
    tokenizer: Tokenizer | None = None
    chat_template: Annotated[str, AfterValidator(check_template)] | None = None
    random_seed: Annotated[int, Field(ge=0)] | None = None  # an option of mergekit's command line
