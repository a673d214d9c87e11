"""What a mergekit file says of tokenizers: whose tokens the output has, and how rows of embedding and head are matched.

mergekit matches rows by the exact texts of the tokens, and gives a model that lacks a token the row that the base model
has for it, else that of the only model that has it, else the mean of all that do. Recipes of ours give it the row of
`start`, or else of the first model that has it: with `start` the base model, and with two models in any case, that is
the same but for the last case. Where `start` is another model, it differs for tokens that it and the base have and a
third model lacks, of which there are none where all were made from the base. A difference that the file shows is told
in a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgery.mergekit.groups import Group
from surgery.mergekit.merge_file import MergeFile, Token
from surgery.source import Mistake, Path
from surgery.wording import show


@dataclass(frozen=True, slots=True)
class Tokens:
    """Whose tokens the output has: the model that it begins from, and what a recipe of ours says of them in `output`.

    `place` is where the file says so; `notes` tell what differs from mergekit.
    """

    start: str
    output: Mapping[str, Any] = field(default_factory=dict)
    place: Path = ()
    notes: tuple[str, ...] = ()
    mistakes: tuple[Mistake, ...] = ()


def tokens_of(file: MergeFile, groups: Sequence[Group], roles: Mapping[str, str]) -> Tokens:
    """As the file says; `roles` are those of all models that it names, the base model first, or else the first one."""
    models = list(roles)
    section = file.tokenizer
    asked = file.tokenizer_source if section is None else section.source
    if asked is None:
        return Tokens(models[0])
    place: Path = ("tokenizer_source",) if section is None else ("tokenizer", "source")
    mistakes = []
    if section is not None and file.tokenizer_source is not None:
        mistakes.append(Mistake(("tokenizer_source",), "found `tokenizer`, too; keep one of them"))
    start = models[0] if asked in ("base", "union") else _lender(asked, models)
    if start is None:
        message = f"{show(asked)} is not among the models, so no embedding has its tokens; expected `base`, `union` or "
        mistakes.append(Mistake(place, f"{message}one of the models"))
        return Tokens(models[0], mistakes=tuple(mistakes))
    union = asked == "union"
    notes = tuple(_differences(file, start, groups, roles, union=union, named=asked not in ("base", "union")))
    output: dict[str, Any] = {"vocabulary": "union" if union else "start"}
    if section is not None and section.tokens:
        output["tokens"] = _rows_of(section.tokens, roles, mistakes)
    if section is not None and section.pad_to_multiple_of is not None:
        output["pad_vocabulary_to"] = section.pad_to_multiple_of
    return Tokens(start, output, place, notes, tuple(mistakes))


def _rows_of(tokens: Mapping[str, Token], roles: Mapping[str, str], mistakes: list[Mistake]) -> dict[str, Any]:
    """`output.tokens` of ours; what cannot be goes to `mistakes`."""
    found = {}
    for text, token in tokens.items():
        model = token.source.model
        if model is not None and model not in roles:
            message = f"{show(model)} is not among the models, so none of its rows is read; expected one of the models"
            mistakes.append(Mistake(("tokenizer", "tokens", text, "source"), message))
            continue
        row: dict[str, Any] = {"from": 0 if model is None else roles[model]}
        if token.source.token is not None:
            row["token"] = token.source.token
        found[text] = {**row, "force": True} if token.force else row
    return found


def _lender(asked: str, models: Sequence[str]) -> str | None:
    """The first model with this tokenizer; adapters do not bring one."""
    return next((model for model in models if model.partition("+")[0] == asked.partition("+")[0]), None)


def _ends(groups: Sequence[Group]) -> list[list[str]]:
    """The models of the embedding and of the head: those of the first and of the last slice."""
    return [[member.model for member in group.members] for group in (groups[0], groups[-1])]


def _other_base(start: str, groups: Sequence[Group]) -> str | None:
    """The base model that lends rows in mergekit where `start` does here.

    Of two models one lacks a token, and the other lends its row, whichever is the base.
    """
    bases = [group.base for group in (groups[0], groups[-1]) if group.base in [m.model for m in group.members]]
    return next((base for base in bases if base not in (None, start)), None)


def _differences(
    file: MergeFile, start: str, groups: Sequence[Group], roles: Mapping[str, str], *, union: bool, named: bool
) -> Iterator[str]:
    """What differs from mergekit, with the roles of models: notes become part of the recipe, paths do not."""
    ends, role = _ends(groups), f"`{roles[start]}`"
    base = all(start in end for end in ends) and {groups[0].base, groups[-1].base} == {start}
    if file.base_model is None and not named and len(roles) > 1:
        yield f"without `base_model` mergekit begins from the tokenizer of any model, here it is that of {role}"
    if file.base_model is not None and file.base_model != start:
        yield f"the output has the config of {role}, in mergekit that of `{roles[file.base_model]}`"
    if file.tokenizer is None or file.tokenizer.pad_to_multiple_of is None:
        yield f"rows beyond the tokens (padding) stay as in {role}, mergekit removes them"
    if union:
        yield (
            "tokens of other vocabularies follow by model and id, entries as entries; in mergekit in another order, "
            "and entries as added tokens, which are found in any text"
        )
    if len(roles) > 2 and (union or not base):
        lacking = f"a token that {role} lacks, too," if base else "a token"
        lender = "the first model that has it" if base else f"{role}, or else of the first model that has it"
        lender = lender if union else role
        other = _other_base(start, groups)
        theirs = "the mean of all" if other is None else f"that of the base model `{roles[other]}`"
        yield f"a model without {lacking} counts as having the row of {lender}, in mergekit {theirs}"
    if any(start not in end or (union and set(end) != set(roles)) for end in ends):
        yield (
            "in mergekit only the models of the first slice lend rows to the embedding, and those of the last to the "
            "head, and a token that these lack has zeros; here any model lends its row"
        )
