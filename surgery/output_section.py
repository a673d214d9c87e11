"""The section `output` of a recipe: how the result is stored, and what its tokens are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from surgery.size import parse_size
from surgery.wording import quoted, show

KEEP = "keep"
MOST_COMMON = "most common"
MAX_MULTIPLE = 65_536  # of rows; kernels want 64 to 512


def _input_role(name: str, info: ValidationInfo) -> str:
    roles = (info.context or {}).get("roles")
    if roles is not None and name not in roles:
        raise ValueError(f"{show(name)} is not among the recipe's models: {quoted(roles)}")
    return name


def _shard_size(value: object) -> int | None:
    if value == KEEP:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    try:
        return parse_size(value)
    except ValueError:
        raise ValueError(f"found {show(value)}; expected `keep` or a size such as `5GB` or `500MiB`") from None


def _chat_template(text: str, info: ValidationInfo) -> str:
    """A Jinja template is told from a role's name by its braces."""
    roles = (info.context or {}).get("roles")
    if text == MOST_COMMON or "{" in text or roles is None or text in roles:
        return text
    raise ValueError(f"found {show(text)}; expected `{MOST_COMMON}`, a Jinja template, or one of {quoted(roles)}")


def _lender(value: object, info: ValidationInfo) -> object:
    if value == 0 and type(value) is int:
        return 0
    if not isinstance(value, str):
        raise ValueError(f"found {show(value)}; expected a role, or 0 for zeros")
    return _input_role(value, info)


InputRole = Annotated[str, AfterValidator(_input_role)]
ShardSize = Annotated[
    int | None,  # bytes
    BeforeValidator(_shard_size),
    PlainSerializer(lambda size: KEEP if size is None else size),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": KEEP},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([KMGTkmgt][Ii]?)?[Bb]$"},
                {"type": "integer", "minimum": 1},
            ]
        }
    ),
]


class TokenRow(BaseModel):
    """Where the rows of a token in embedding and head come from, for roles that lack it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_: Annotated[
        str | int,
        BeforeValidator(_lender),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"const": 0}]}),
    ] = Field(alias="from", description="the role whose row it is, or 0 for zeros")
    token: str | Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="the token, by its text or its id, whose row it is there; default: the same token"
    )
    force: bool = Field(default=False, description="whether roles that have the token get this row all the same")

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenRow:
        if self.from_ == 0 and self.token is not None:
            raise ValueError("found `token` beside `from: 0`, which means zeros; expected a role, or no `token`")
        return self


class Output(BaseModel):
    """`output:` of a recipe: how the result is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["keep", "bfloat16", "float16", "float32"] = Field(
        default="keep", description="dtype of the output's float tensors; `keep`: each tensor's own in `start`"
    )
    shard_size: ShardSize = Field(
        default=None,
        json_schema_extra={"default": KEEP},
        description="largest file: `5GB`, `500MiB`; `keep`: the files of `start`, with slices none larger",
    )
    tokenizer: InputRole | None = Field(
        default=None, description="the role whose tokenizer and chat template go with it; default: `start`"
    )
    vocabulary: Literal["start", "union"] | None = Field(
        default=None,
        description="match rows of embedding and head by their tokens: the output has those of `start`, or the "
        "`union` of all roles'. A role that lacks a token counts as having the row that the output begins with, "
        "that of `start`. Default: by position, where the tokenizers agree",
    )
    tokens: dict[Annotated[str, Field(min_length=1)], TokenRow] | None = Field(
        default=None,
        description="tokens with the rows that they get in roles that lack them; those that the output would lack are "
        "added to its tokenizer. Needs `vocabulary`",
    )
    pad_vocabulary_to: Annotated[int, Field(ge=1, le=MAX_MULTIPLE)] | None = Field(
        default=None,
        description="the number of rows of embedding and head is the next multiple of this: rows of `start` beyond its "
        "tokens are left out, and those added are the mean of all others. Needs `vocabulary`",
    )
    chat_template: Annotated[str, AfterValidator(_chat_template)] | None = Field(
        default=None,
        description="the chat template: a role, whose it is; `most common` of the roles'; or one in Jinja. Default: "
        "the one that goes with the tokenizer",
    )

    @model_validator(mode="after")
    def _rows_by_token(self) -> Output:
        for name in ("tokens", "pad_vocabulary_to"):
            if getattr(self, name) is not None and self.vocabulary is None:
                raise ValueError(
                    f"found `{name}` without `vocabulary`; rows are counted and named by tokens: add "
                    f"`vocabulary: start` (or union)"
                )
        return self
