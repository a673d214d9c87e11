"""The format of mergekit's recipe files, as far as recipes of ours can say the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from surgery.mergekit.settings import SettingField
from surgery.wording import show

_DTYPES = ("bfloat16", "float16", "float32")


def _reference(value: object) -> str:
    """A model as `surgery` names it: a path, or a hub id with its revision. Raises ValueError."""
    if isinstance(value, Mapping):
        value = _spelt_out(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"found {show(value)}; expected a directory or a hub id `org/name[@revision]`")
    if "+" in value:
        raise ValueError(
            f"{show(value)} adds a LoRA adapter, which is not supported; merge it into its model first, with "
            "`PeftModel.from_pretrained(base, ADAPTER).merge_and_unload()` of peft, and name the result"
        )
    if value.count("@") > 1:
        raise ValueError(f"found {show(value)}; expected one `@`, before the revision")
    return value


def _spelt_out(value: Mapping[str, Any]) -> str:
    """`{model: {path: ..., revision: ...}}` as one text. Raises ValueError."""
    for key, fault in (("lora", "LoRA adapters are not supported"), ("override_architecture", "it is not supported")):
        if value.get(key) is not None:
            raise ValueError(f"found `{key}`; {fault}: remove it")
    inner = value.get("model")
    known: tuple[str, ...] = ("model", "lora", "override_architecture")
    if isinstance(inner, Mapping):
        known, value = ("path", "revision"), inner
        revision = inner.get("revision")
        inner = inner.get("path") if revision is None else f"{inner.get('path')}@{revision}"
    unknown = [key for key in value if key not in known]
    if unknown or not isinstance(inner, str):
        raise ValueError(f"found {show(unknown[0] if unknown else inner)}; expected `path` and `revision` of a model")
    return inner


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
    pad_to_multiple_of: Annotated[None, _refused("embeddings keep their rows; remove it, and pad afterwards")] = None


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
