"""Whether rows of embeddings and heads may be matched by position: only where both tokenizers have the same tokens."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence

from surgery.checkpoint import Checkpoint
from surgery.conflicts import Conflicts
from surgery.errors import CheckpointError
from surgery.recipe import Recipe
from surgery.vocabulary import TOKENIZER_FILE, Difference, differences, has_tokenizer_file, read_vocabulary
from surgery.wording import SOME, numbered, quoted, show

REMEDY = (  # against rows of different tokens
    "match them by their tokens, `--set output.vocabulary=start` (or union), or leave them out, "
    "`exclude: [embedding, lm_head]`"
)

OLDER_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")  # where there is no tokenizer.json


class TokenPositions:
    """Compares the tokens of two roles id by id; `remarks` tell what could not be compared."""

    def __init__(self, recipe: Recipe, inputs: Mapping[str, Checkpoint]) -> None:
        self.remarks: list[str] = []
        self._start = recipe.start
        self._by_text = recipe.output.vocabulary is not None
        self._inputs = inputs
        self._found: dict[tuple[str, str], list[Difference]] = {}

    def mismatch(self, one: str, other: str) -> str | None:
        """Why rows of two roles must not be matched by position, or None; also where the recipe matches by text."""
        found = [] if self._by_text else self._differences(one, other)
        return f"the vocabularies differ: {_told(found, one, other)}; {REMEDY}" if found else None

    def check_lender(self, lender: str, conflicts: Conflicts) -> None:
        """A tokenizer taken from another role must fit the rows of `start`: in number, and token by token."""
        if lender == self._start or self._by_text:
            return
        ours, theirs = self._rows(self._start), self._rows(lender)
        remedy = f"take the tokenizer of `{self._start}`"
        if ours != theirs:
            conflicts.output(
                "tokenizer",
                f"the embedding has {ours} rows in `{self._start}` and {theirs} in `{lender}`, so its "
                f"tokenizer does not fit the output; {remedy}",
            )
            return
        found = [each for each in self._differences(self._start, lender) if each.there is not None]
        if found:
            told = _told(found, self._start, lender)
            conflicts.output("tokenizer", f"that of `{lender}` does not fit the rows of the output: {told}; {remedy}")

    def _rows(self, role: str) -> int | None:
        embedding = self._inputs[role].anatomy.embedding
        return self._inputs[role].tensors[embedding].shape[0] if embedding else None

    def _differences(self, one: str, other: str) -> list[Difference]:
        if (one, other) not in self._found:
            self._found[one, other] = self._compare(one, other)
        return self._found[one, other]

    def _compare(self, one: str, other: str) -> list[Difference]:
        """The rows whose tokens differ. Without both tokenizers there is nothing to compare; that is remarked upon."""
        if one == other:
            return []
        without = [role for role in (one, other) if not has_tokenizer_file(self._inputs[role])]
        if len(without) == 1 or (without and not self._same_vocabularies(one, other)):
            self._unchecked(one, other, f"{_have(without)} no `{TOKENIZER_FILE}`")
        if without or self._same_file(one, other):
            return []
        try:
            ours, theirs = (read_vocabulary(self._inputs[role]) for role in (one, other))
        except CheckpointError as error:
            self._unchecked(one, other, str(error))
            return []
        return differences(ours, theirs, self._rows(one))

    def _same_file(self, one: str, other: str) -> bool:
        """Whether the tokenizers are the same to the byte, as those of most models of one family are."""
        ours, theirs = (self._inputs[role].root / TOKENIZER_FILE for role in (one, other))
        try:
            return filecmp.cmp(ours, theirs, shallow=False)
        except OSError:
            return False  # whoever reads it for good will tell

    def _same_vocabularies(self, one: str, other: str) -> bool:
        """Whether files of older kinds are the same to the byte, or absent from both."""
        ours, theirs = (self._inputs[role].root for role in (one, other))
        same, different, failed = filecmp.cmpfiles(ours, theirs, OLDER_FILES, shallow=False)
        absent = [name for name in failed if not (ours / name).exists() and not (theirs / name).exists()]
        return not different and len(same) + len(absent) == len(OLDER_FILES)

    def _unchecked(self, one: str, other: str, reason: str) -> None:
        self.remarks.append(f"rows of `{one}` and `{other}` are matched by position, without a check: {reason}")


def _have(roles: Sequence[str]) -> str:
    return f"{quoted(roles)} {'has' if len(roles) == 1 else 'have'}"


def _told(found: Sequence[Difference], one: str, other: str) -> str:
    """`2 token ids do not mean the same: 1 is `b` in `sft` and `a` in `base`, ...`."""
    rows = ", ".join(
        f"{each.id} is {_text(each.here)} in `{one}` and {_text(each.there)} in `{other}`" for each in found[:SOME]
    )
    more = f" and {len(found) - SOME:,} more" if len(found) > SOME else ""
    return f"{numbered(len(found), 'token id')} {'does' if len(found) == 1 else 'do'} not mean the same: {rows}{more}"


def _text(text: str | None) -> str:
    return "no token" if text is None else show(text)
