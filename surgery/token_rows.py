"""Rows of embeddings and output heads belong to tokens: which rows of which model a tensor of the output is made of.

With `output: {vocabulary: start}` the output has the tokens of `start`, in their order; with `union` those of all
roles, first those of `start`, then the others' by role and id. Where a step reads another role, row i is the row that
this role has for token i. For a token that it lacks, it counts as having the row that the output begins with: that of
`start`, or of the first role that has a token that `start` lacks. So its task vector from `start` is 0 there, and an
average with it stays what `start` has. Rows of `start` beyond its tokens (padding) are treated likewise.

Without `vocabulary`, rows are matched by position, and only where the two tokenizers have the same text for each row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod

from surgery.checkpoint import Checkpoint
from surgery.config import with_vocabulary
from surgery.conflicts import Conflicts
from surgery.errors import CheckpointError, NotInstalledError
from surgery.groups import token_rank
from surgery.header import TensorInfo
from surgery.index import read_json
from surgery.plan import Source
from surgery.recipe import Recipe
from surgery.row_map import RowMap
from surgery.stacking import Stacking
from surgery.union_tokenizer import NewToken, united
from surgery.vocabulary import TOKENIZER_FILE, Vocabulary, differences, has_tokenizer_file, read_vocabulary
from surgery.wording import numbered, quoted, show

_TOLD = 3  # tokens that a message shows
_PREDICTORS_HEAD = ".shared_head.head.weight"  # of the layers after the last that predict further tokens (DeepSeek-V3)
REMEDY = (  # against rows of different tokens
    "match them by their tokens, `--set output.vocabulary=start` (or union), or leave them out, "
    "`exclude: [embedding, lm_head]`"
)


class TokenRows:
    """The rows of one recipe's output.

    `stacking` is what the steps work on: with `union`, embedding, head and config of its `start` have the rows of the
    output. `files` are tokenizer files that differ from those of `start`. Conflicts go to `conflicts`; PlanError is
    raised at once where one leaves nothing to go on with.
    """

    def __init__(
        self, recipe: Recipe, inputs: Mapping[str, Checkpoint], stacking: Stacking, conflicts: Conflicts
    ) -> None:
        self.stacking = stacking
        self.files: dict[str, bytes] = {}
        self.remarks: list[str] = []
        self._recipe = recipe
        self._role = recipe.start
        self._policy = recipe.output.vocabulary
        self._inputs = inputs
        self._conflicts = conflicts
        self._known: dict[str, Vocabulary] = {}
        self._maps: dict[str, tuple[list[str], RowMap]] = {}
        self._compared: dict[tuple[str, str], str | None] = {}
        self.names = _token_tensors(stacking.start)
        if self._policy is None:
            return
        if recipe.output.tokenizer not in (None, self._role):
            self._conflicts.output(
                f"tokenizer: found `{recipe.output.tokenizer}`, and with `vocabulary` the output has the tokenizer of "
                f"`{self._role}`; leave out one of the two"
            )
        if not self.names:
            self._refuse(f"`{self._role}` has no token embedding, so there are no rows to match")
        start = self._vocabulary(self._role)
        rows = self._rows(self._role)
        # Of each row of the output: its token with the role whose spelling it has, and where the output begins.
        self._tokens = [(start.texts[i], self._role) if i in start.texts else None for i in range(rows)]
        self._own = [(self._role, i) for i in range(rows)]
        if self._policy == "union":
            self._unite(start)

    def source(self, number: int, role: str, name: str, info: TensorInfo) -> Source | None:
        """What a step reads for the tensor `name` from a role that has `info` for it; None and a conflict."""
        if self._policy is None or name not in self.names:
            return Source(role, info)
        if not info.dtype.arithmetic:
            self._conflicts.step(
                number,
                f"`{info.name}` of `{role}` is {info.dtype.name}, whose rows cannot be taken apart; dequantise "
                f"`{self._inputs[role].source}` first, or leave the tensor out of `select`",
            )
            return None
        return self._gathered(role, name, info)

    def as_output(self, name: str, info: TensorInfo | None) -> TensorInfo | None:
        """A role's tensor as it is once its rows are matched: with the number of rows of the output."""
        if info is None or self._policy is None or name not in self.names:
            return info
        return _with_rows(info, len(self._own))

    def mismatch(self, one: str, other: str) -> str | None:
        """Why rows of two roles must not be matched by position, or None: ids that do not mean the same token."""
        if (one, other) not in self._compared:
            self._compared[one, other] = self._mismatch(one, other) if self._policy is None else None
        return self._compared[one, other]

    def check_lender(self, lender: str) -> None:
        """A tokenizer taken from another role must fit the rows of `start`: in number, and token by token."""
        if lender == self._role or self._policy is not None:
            return
        ours, theirs = (
            self._inputs[role].tensors[name].shape[0] if (name := self._inputs[role].anatomy.embedding) else None
            for role in (self._role, lender)
        )
        remedy = f"take the tokenizer of `{self._role}`"
        if ours != theirs:
            self._conflicts.output(
                f"tokenizer: the embedding has {ours} rows in `{self._role}` and {theirs} in `{lender}`, so its "
                f"tokenizer does not fit the output; {remedy}"
            )
            return
        found = [each for each in self._differences(self._role, lender) if each[2] is not None]
        if found:
            told = self._told(found, self._role, lender)
            self._conflicts.output(
                f"tokenizer: that of `{lender}` does not fit the rows of the output: {told}; {remedy}"
            )

    @cached_property
    def digest(self) -> str:
        """Of the tokenizer files that are made; empty where there are none."""
        if not self.files:
            return ""
        return hashlib.blake2b(repr(sorted(self.files.items())).encode(), digest_size=16).hexdigest()

    def _refuse(self, message: str) -> None:
        self._conflicts.output(f"vocabulary: {message}")
        self._conflicts.raise_all()

    def _vocabulary(self, role: str) -> Vocabulary:
        if role not in self._known:
            try:
                self._known[role] = read_vocabulary(self._inputs[role])
            except (CheckpointError, NotInstalledError) as error:
                self._refuse(f"tokens of `{role}` are not known: {error}")
        return self._known[role]

    def _rows(self, role: str) -> int:
        """The rows of a role's embedding."""
        embedding = self._inputs[role].anatomy.embedding
        if embedding is None:
            self._refuse(f"`{role}` has no token embedding, so there are no rows to match")
        assert embedding is not None
        return self._inputs[role].tensors[embedding].shape[0]

    def _info(self, role: str, name: str) -> TensorInfo | None:
        """What a role has for a tensor of the output; for a head that is tied and not stored, its embedding."""
        found = self.stacking.views[role].get(name)
        checkpoint = self._inputs[role]
        if found is None and checkpoint.tied and name == self.stacking.start.anatomy.head:
            found = checkpoint.tensors.get(checkpoint.anatomy.embedding or "")
        return found

    # --- matching by text --------------------------------------------------------------------------------------------

    def _gathered(self, role: str, name: str, info: TensorInfo) -> Source | None:
        roles, rows = self._map(role)
        if rows.identity and info.shape[0] == len(self._own):
            return Source(role, info)
        others = [self._info(other, name) for other in roles[1:]]
        for part, (owner, found) in enumerate(zip(roles, [info, *others], strict=True)):
            if found is None:
                self._refuse(f"`{name}` is not in `{owner}`, which has tokens that `{self._role}` lacks")
            elif part < len(rows.reach) and rows.reach[part] > found.shape[0]:
                text = self._vocabulary(owner).texts.get(rows.reach[part] - 1, "")
                self._refuse(
                    f"`{found.name}` of `{owner}` has {found.shape[0]} rows, and its tokenizer has the token "
                    f"{show(text)} with the id {rows.reach[part] - 1}; expected a row for each token: take the "
                    f"tokenizer that belongs to these weights"
                )
        return Source(
            role,
            info,
            rows,
            tuple(Source(other, found) for other, found in zip(roles[1:], others, strict=True) if found is not None),
        )

    def _map(self, role: str) -> tuple[list[str], RowMap]:
        """The roles that give rows where `role` is read, itself first, and the rows."""
        if role not in self._maps:
            places = list(self._places(role))
            roles = list(dict.fromkeys([role, *(other for other, _ in places)]))
            number = {other: i for i, other in enumerate(roles)}
            self._maps[role] = roles, RowMap.of([(number[other], row) for other, row in places])
            if role != self._role:
                self._remark(role, places)
        return self._maps[role]

    def _places(self, role: str) -> Iterator[tuple[str, int]]:
        """Where the row of each token is, as seen from a role."""
        if role == self._role:
            yield from self._own
            return
        vocabulary = self._vocabulary(role)
        for token, own in zip(self._tokens, self._own, strict=True):
            found = None if token is None else vocabulary.find(token[0], self._vocabulary(token[1]))
            yield own if found is None else (role, found)

    def _remark(self, role: str, places: Sequence[tuple[str, int]]) -> None:
        texts = [token[0] if token else None for token in self._tokens]
        total = sum(text is not None for text in texts)
        found = {row for owner, row in places if owner == role}
        lacking = [text for text, (owner, _) in zip(texts, places, strict=True) if text is not None and owner != role]
        dropped = [text for number, text in self._vocabulary(role).texts.items() if number not in found]
        told = f"vocabulary: `{role}` has {total - len(lacking):,} of the output's {numbered(total, 'token')}"
        if lacking:
            told += f"; it lacks {_some(lacking)}, for which it counts as having the output's own rows"
        if dropped:
            told += f"; the output lacks {_some(dropped)}, which {'is' if len(dropped) == 1 else 'are'} left out"
        self.remarks.append(told)

    # --- the tokens of all roles -------------------------------------------------------------------------------------

    def _unite(self, start: Vocabulary) -> None:
        new = self._new_tokens(start)
        if not new:
            self.remarks.append(f"vocabulary: no role has a token that `{self._role}` lacks; none is added")
            return
        try:
            made = united(start, [token for _, _, token in new])
        except (ValueError, NotInstalledError) as error:
            self._refuse(f"the tokenizer of `{self._role}` cannot have the tokens of all roles: {error}; take `start`")
            return
        rows = self._rows(self._role)
        self._place(start, new, rows)
        self._refuse_unlike(dict.fromkeys(role for role, _, _ in new))
        for role in dict.fromkeys(role for role, _, _ in new):
            added = [token.text for owner, _, token in new if owner == role]
            self.remarks.append(f"vocabulary: adds {_some(added)} of `{role}`")
        self.files = dict(_tokenizer_files(self._inputs[self._role], made, [token for _, _, token in new]))
        self._enlarge(rows)

    def _new_tokens(self, start: Vocabulary) -> list[tuple[str, int, NewToken]]:
        """The tokens that `start` lacks: role and id there, and what is added."""
        found: dict[str, tuple[str, int, NewToken]] = {}
        following = max(start.ids.values(), default=-1) + 1
        for role in self._inputs:
            vocabulary = self._vocabulary(role)
            lacking = [] if role == self._role else [
                (number, text) for number, text in vocabulary.texts.items()
                if text not in found and start.find(text, vocabulary) is None
            ]  # fmt: skip
            entries = [text for _, text in lacking if text not in vocabulary.added]
            if entries and vocabulary.spelling != start.spelling:
                self._refuse(
                    f"the tokenizers of `{self._role}` ({start.spelling or 'of another kind'}) and `{role}` "
                    f"({vocabulary.spelling or 'of another kind'}) write their entries differently, so "
                    f"{_some(entries)} of `{role}` cannot be added; take `start`"
                )
            taken = [text for _, text in lacking if text in start.ids]
            if taken:
                self._refuse(
                    f"{_some(taken)} of `{role}` does not mean the same in `{self._role}`, whose tokenizer writes "
                    f"its entries differently; take `start`"
                )
            for number, text in lacking:
                token = NewToken(text, following + len(found), vocabulary.added.get(text))
                found[text] = role, number, token
        return list(found.values())

    def _place(self, start: Vocabulary, new: Sequence[tuple[str, int, NewToken]], rows: int) -> None:
        """Give the new tokens their rows: padding of `start` first, then rows behind its own."""
        top = max(start.ids.values(), default=-1)
        if top >= rows:
            self._refuse(
                f"the embedding of `{self._role}` has {rows} rows, and its tokenizer has the token "
                f"{show(start.texts[top])} with the id {top}; expected a row for each token: take the tokenizer that "
                f"belongs to these weights"
            )
        more = max(0, new[-1][2].id + 1 - rows)
        self._tokens += [None] * more
        self._own += [(self._role, -1)] * more
        for role, number, token in new:
            self._tokens[token.id] = token.text, role
            self._own[token.id] = role, number

    def _refuse_unlike(self, lenders: Mapping[str, None]) -> None:
        """The rows of added tokens must fit into the tensors of `start`."""
        start = self.stacking.start
        for role in lenders:
            if self._inputs[role].tied != start.tied:
                words = {True: "tied to the embedding", False: "a matrix of its own"}
                self._refuse(
                    f"the output head is {words[start.tied]} in `{self._role}` and {words[not start.tied]} in "
                    f"`{role}`, so its rows for the tokens that `{self._role}` lacks do not mean the same; take `start`"
                )
            for name in sorted(self.names):
                ours, theirs = start.tensors[name], self._info(role, name)
                if theirs is None:
                    self._refuse(
                        f"`{name}` is in `{self._role}` and not in `{role}`, which has tokens to add; take `start`"
                    )
                elif theirs.shape[1:] != ours.shape[1:]:
                    self._refuse(
                        f"`{name}` is {list(ours.shape)} in `{self._role}` and {list(theirs.shape)} in `{role}`; "
                        f"expected rows of one length"
                    )
                elif not (ours.dtype.arithmetic and theirs.dtype.arithmetic):
                    self._refuse(f"`{name}` is quantised, in `{self._role}` or `{role}`; dequantise the model first")
                elif ours.dtype != theirs.dtype and self._recipe.output.dtype == "keep":
                    self._refuse(
                        f"`{name}` is {ours.dtype.name} in `{self._role}` and {theirs.dtype.name} in `{role}`; name "
                        f"the dtype of the output, `--set output.dtype=bfloat16` (or float16, float32)"
                    )

    def _enlarge(self, before: int) -> None:
        """What the steps edit: tensors with a row for each token, and a config that says so."""
        start, rows = self.stacking.start, len(self._own)
        origins = dict(self.stacking.origins)
        tensors = dict(start.tensors)
        for name in self.names:
            found = self._gathered(self._role, name, origins[name].info)
            assert found is not None
            origins[name] = found
            tensors[name] = _with_rows(tensors[name], rows)
        config, metadata = start.config, dict(start.index_metadata)
        if "total_parameters" in metadata:  # transformers 5 counts them
            metadata["total_parameters"] = sum(info.elements for info in tensors.values())
        if rows != before and not config:
            self.remarks.append(f"`{self._role}` has no `config.json`; write one for {rows} tokens, or loaders fail")
        elif rows != before:
            config, found_there = with_vocabulary(config, before, rows)
            if not found_there:
                self._refuse(
                    f"the config of `{self._role}` does not say `vocab_size: {before}`, which becomes {rows}; correct "
                    f"its `config.json`"
                )
        changed = replace(start, tensors=tensors, config=config, index_metadata=metadata)
        self.stacking = replace(self.stacking, start=changed, origins=origins)

    # --- matching by position ----------------------------------------------------------------------------------------

    def _mismatch(self, one: str, other: str) -> str | None:
        found = self._differences(one, other)
        return f"the vocabularies differ: {self._told(found, one, other)}; {REMEDY}" if found else None

    def _differences(self, one: str, other: str) -> list[tuple[int, str | None, str | None]]:
        """The rows whose tokens differ. Without both tokenizers there is nothing to compare; that is remarked upon."""
        has = {role: has_tokenizer_file(self._inputs[role]) for role in (one, other)}
        if not all(has.values()):
            if any(has.values()):
                without = next(role for role, there in has.items() if not there)
                self._unchecked(one, other, f"`{without}` has no `{TOKENIZER_FILE}`")
            return []
        try:
            ours, theirs = (read_vocabulary(self._inputs[role]) for role in (one, other))
        except CheckpointError as error:
            self._unchecked(one, other, str(error))
            return []
        return differences(ours, theirs, self._rows(one))

    def _unchecked(self, one: str, other: str, reason: str) -> None:
        self.remarks.append(f"rows of `{one}` and `{other}` are matched by position, without a check: {reason}")

    @staticmethod
    def _told(found: Sequence[tuple[int, str | None, str | None]], one: str, other: str) -> str:
        texts = [tuple("no token" if text is None else show(text) for text in texts) for _, *texts in found[:_TOLD]]
        rows = ", ".join(
            f"{number} is {ours} in `{one}` and {theirs} in `{other}`"
            for (number, *_), (ours, theirs) in zip(found, texts, strict=False)
        )
        more = f" and {len(found) - _TOLD:,} more" if len(found) > _TOLD else ""
        return (
            f"{numbered(len(found), 'token id')} {'does' if len(found) == 1 else 'do'} not mean the same: {rows}{more}"
        )


def _token_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """The tensors with a row for each token: embedding, head with its bias, and their like beside the layers."""
    anatomy, tensors = checkpoint.anatomy, checkpoint.tensors
    if anatomy.embedding is None:
        return frozenset()
    rows = tensors[anatomy.embedding].shape[0]
    return frozenset(
        name
        for name, info in tensors.items()
        if info.shape[:1] == (rows,)
        and (
            name in (anatomy.embedding, anatomy.head)
            or (anatomy.group_of(name) == "lm_head" and prod(info.shape[1:]) > 0)
            or (token_rank(name) is not None and len(info.shape) == 2)
            or name.endswith(_PREDICTORS_HEAD)
        )
    )


def _with_rows(info: TensorInfo, rows: int) -> TensorInfo:
    shape = (rows, *info.shape[1:])
    return replace(info, shape=shape, nbytes=info.dtype.nbytes(prod(shape)))


def _tokenizer_files(
    start: Checkpoint, made: Mapping[str, object], new: Sequence[NewToken]
) -> Iterator[tuple[str, bytes]]:
    """The tokenizer's files that name its tokens, with the new ones."""
    yield TOKENIZER_FILE, json.dumps(made, indent=2, ensure_ascii=False).encode()
    settings = {token.id: token for token in new if token.settings is not None}
    for name, key in (("tokenizer_config.json", "added_tokens_decoder"), ("added_tokens.json", None)):
        path = start.root / name
        if not path.is_file():
            continue
        data = read_json(path)
        if key is None:
            data |= {token.text: number for number, token in settings.items()}
        elif isinstance(data.get(key), dict):
            added = {
                str(number): {field: value for field, value in (token.settings or {}).items() if field != "id"}
                for number, token in settings.items()
            }
            data = {**data, key: {**data[key], **added}}
        else:
            continue
        yield name, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _some(texts: Sequence[str]) -> str:
    """`3 tokens (`a`, `b`, `c`)`, of more the first."""
    more = ", ..." if len(texts) > _TOLD else ""
    return f"{numbered(len(texts), 'token')} ({quoted(texts[:_TOLD])}{more})"
