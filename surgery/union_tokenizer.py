"""A tokenizer with tokens of others added: texts of the first are split as before, but for what was added."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.errors import NotInstalledError
from surgery.index import read_json
from surgery.vocabulary import TOKENIZER_FILE, Vocabulary
from surgery.wording import some


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that is added under the number `id`, and the role that lends it, with its id there; None: no role has it.

    `settings` are those of an added token, as `tokenizer.json` has them, None for an entry of a vocabulary.
    """

    text: str
    id: int
    settings: Mapping[str, Any] | None
    role: str | None
    id_there: int


def new_tokens(start: str, vocabularies: Mapping[str, Vocabulary]) -> list[NewToken]:
    """The tokens that `start` lacks, by role and id, numbered from its last one on.

    Raises ValueError when a role writes the entries of its vocabulary otherwise than `start`.
    """
    ours = vocabularies[start]
    found: dict[str, NewToken] = {}
    following = max(ours.ids.values(), default=-1) + 1
    for role, theirs in vocabularies.items():
        if role == start:
            continue
        lacking = [
            (number, text)
            for number, text in theirs.texts.items()
            if text not in found and ours.find(text, theirs) is None
        ]
        foreign = [text for _, text in lacking if text not in theirs.added] if theirs.spelling != ours.spelling else []
        foreign += [text for _, text in lacking if text in ours.ids]  # there it means something else
        if foreign:
            kinds = [each.spelling or "another kind" for each in (ours, theirs)]
            raise ValueError(
                f"that of `{role}` ({kinds[1]}) writes its entries otherwise ({kinds[0]} here), found "
                f"{some(list(dict.fromkeys(foreign)))} to add"
            )
        for number, text in lacking:
            found[text] = NewToken(text, following + len(found), theirs.added.get(text), role, number)
    return list(found.values())


def united(data: Mapping[str, Any], first: Vocabulary, new: Sequence[NewToken]) -> dict[str, Any]:
    """The `tokenizer.json` of `first`, whose content is `data`, with `new` tokens, which get the ids that they name.

    Tokens that their own tokenizer had added are added here, with the same settings: they are found in any text.
    Entries of another vocabulary become entries of this one, without merges: ids have texts and texts have ids, and
    how a text is split stays as it was, unless the kind of model (WordLevel, WordPiece) looks up its entries.

    Checked by loading it with tokenizers. Raises ValueError when the model has no place for such entries (Unigram) or
    the ids come out otherwise; NotInstalledError without tokenizers.
    """
    entries = [token.text for token in new if token.settings is None]
    if entries and not isinstance(data["model"]["vocab"], dict):
        raise ValueError(
            f"a {data['model'].get('type')} tokenizer splits texts by all entries that it has, so it cannot get "
            f"{some(entries)} of another vocabulary"
        )
    expected = {**first.ids, **{token.text: token.id for token in new}}
    for explicit in [True] if entries else [False, True]:
        made = _with(data, new, explicit=explicit)
        if _ids(made) == expected:
            return made
    raise ValueError("in its `tokenizer.json` there is no way to give the added tokens the ids that follow its own")


def tokenizer_files(start: Checkpoint, made: Mapping[str, Any], new: Sequence[NewToken]) -> Iterator[tuple[str, bytes]]:
    """The files of the tokenizer of `start` that list its tokens, by name, with the new ones; `made` is `united`'s."""
    yield TOKENIZER_FILE, _dump(made)
    settings = {token.id: token for token in new if token.settings is not None}
    decoder = {
        str(number): {key: value for key, value in (token.settings or {}).items() if key != "id"}
        for number, token in settings.items()
    }
    for name, key in (("tokenizer_config.json", "added_tokens_decoder"), ("added_tokens.json", None)):
        path = start.root / name
        data = read_json(path) if path.is_file() else {}
        if key is None and data:
            yield name, _dump({**data, **{token.text: number for number, token in settings.items()}})
        elif key is not None and isinstance(data.get(key), dict):
            yield name, _dump({**data, key: {**data[key], **decoder}})


def _dump(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _with(data: Mapping[str, Any], new: Sequence[NewToken], *, explicit: bool) -> dict[str, Any]:
    """With `explicit`, all tokens are entries of the model too: added ones are otherwise numbered after its entries."""
    added = [*(data.get("added_tokens") or [])]
    added += [{**token.settings, "id": token.id} for token in new if token.settings is not None]
    model = data["model"]
    if explicit and isinstance(model["vocab"], dict):
        numbers = {token["content"]: token["id"] for token in added} | {token.text: token.id for token in new}
        model = {**model, "vocab": {**model["vocab"], **numbers}}
    return {**data, "added_tokens": added, "model": model}


def _ids(data: Mapping[str, Any]) -> dict[str, int]:
    """The ids of all tokens, as tokenizers reads them."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise NotInstalledError(
            "to add tokens to a tokenizer needs tokenizers: `pip install 'surgery[eval]'`", name="tokenizers"
        ) from error
    ids: dict[str, int] = Tokenizer.from_str(json.dumps(data)).get_vocab(with_added_tokens=True)
    return ids
