"""A tokenizer with tokens of others added: texts of the first are split as before, but for what was added."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.errors import NotInstalledError
from surgery.vocabulary import Vocabulary
from surgery.wording import quoted


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that is added under an id; `settings` are those of an added token, None for an entry of a vocabulary."""

    text: str
    id: int
    settings: Mapping[str, Any] | None


def united(first: Vocabulary, new: Sequence[NewToken]) -> dict[str, Any]:
    """The `tokenizer.json` of `first` with `new` tokens, which get the ids that they name.

    Tokens that their own tokenizer had added are added here, with the same settings: they are found in any text.
    Entries of another vocabulary become entries of this one, without merges: ids have texts and texts have ids, and
    how a text is split stays as it was, unless the kind of model (WordLevel, WordPiece) looks up its entries.

    Checked by loading it with tokenizers. Raises ValueError when the model has no place for such entries (Unigram) or
    the ids come out otherwise; NotInstalledError without tokenizers.
    """
    entries = [token for token in new if token.settings is None]
    if entries and not isinstance(first.data["model"]["vocab"], dict):
        raise ValueError(
            f"{quoted(token.text for token in entries)} are entries of another vocabulary, and a "
            f"{first.data['model'].get('type')} tokenizer has no place for them that leaves how it splits texts"
        )
    expected = {**first.ids, **{token.text: token.id for token in new}}
    made: dict[str, Any] = {}
    for explicit in [True] if entries else [False, True]:
        made = _with(first.data, new, explicit=explicit)
        if _ids(made) == expected:
            return made
    raise ValueError("its tokenizer gives the added tokens other ids than the next ones")


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
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise NotInstalledError(
            "`output.vocabulary: union` needs tokenizers: `pip install 'surgery[eval]'`", name="tokenizers"
        ) from error
    ids: dict[str, int] = Tokenizer.from_str(json.dumps(data)).get_vocab(with_added_tokens=True)
    return ids
