"""The format of mergekit's recipe files, as far as recipes of ours can say the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from surgery.mergekit.settings import SettingField
from surgery.wording import quoted, show

_DTYPES = ("bfloat16", "float16", "float32")


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


def _refused(advice: str) -> BeforeValidator:
    def refuse(value: object) -> None:
        if value is not None:
            raise ValueError(f"not supported: {advice}")

    return BeforeValidator(refuse)


def _dtype(value: str) -> str:
    found = value.removeprefix("torch.")
    if found not in _DTYPES:
        raise ValueError(f"found {show(value)}; expected `bfloat16`, `float16` or `float32`, which outputs may have")
    return found


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


class Input(_Part):
    """One of `models`."""

    model: Reference = Field(description="the path or the hub id of a model")
    parameters: Settings = Field(default_factory=dict)


class SliceInput(Input):
    """One of a slice's `sources`: the layers of a model from the first number up to, and without, the second."""

    layer_range: Annotated[tuple[int, int], AfterValidator(_range)]


class Slice(_Part):
    """Some layers of the output, made from as many layers of each source."""

    sources: tuple[SliceInput, ...] = Field(min_length=1)
    base_model: Annotated[str | None, _or_none(_reference)] = None
    parameters: Settings = Field(default_factory=dict)


class Tokenizer(_Part):
    """The section `tokenizer`."""

    source: Reference = "union"
    tokens: Annotated[
        None, _refused("tokens cannot be added or changed; remove it, and change the tokenizer afterwards")
    ] = None
    pad_to_multiple_of: Annotated[
        None, _refused("embeddings have a row for each token; remove it, and pad afterwards")
    ] = None


class MergeFile(_Part):
    """A recipe file of mergekit."""

    name: str | None = None
    merge_method: str = Field(description="what to do with the models")
    models: tuple[Input, ...] | None = Field(default=None)
    slices: tuple[Slice, ...] | None = None
    modules: Annotated[None, _refused("merge the modules of such a model as a whole, with `models`")] = None
    base_model: Annotated[str | None, _or_none(_reference)] = None
    parameters: Settings = Field(default_factory=dict)
    dtype: Annotated[str, AfterValidator(_dtype)] | None = None
    out_dtype: Annotated[str, AfterValidator(_dtype)] | None = None
    tokenizer_source: Annotated[str | None, _or_none(_reference)] = None
    tokenizer: Tokenizer | None = None
    chat_template: Annotated[
        None, _refused("the output has the chat template of its tokenizer; remove it, and change it afterwards")
    ] = None
