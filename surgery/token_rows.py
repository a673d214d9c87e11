"""Rows of embeddings and output heads belong to tokens: which rows of which model a tensor of the output is made of.

With `output: {vocabulary: start}` the output has the tokens of `start`, in their order; with `union` those of all
roles, first those of `start`, then the others' by role and id. Where a step reads another role, row i is the row that
this role has for token i. For a token that it lacks, it counts as having the row that the output begins with: that of
`start`, or of the first role that has a token that `start` lacks. So its task vector from `start` is 0 there, and an
average with it stays what `start` has. Rows of `start` beyond its tokens (padding) are treated likewise. The recipe may
name other rows for tokens (`output.tokens`), and other padding; see `output_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from surgery.checkpoint import Checkpoint
from surgery.config import with_vocabulary
from surgery.conflicts import Conflicts
from surgery.errors import CheckpointError, NotInstalledError, PlanError
from surgery.groups import token_rank
from surgery.header import TensorInfo
from surgery.output_tokens import OutputTokens, Place, output_tokens
from surgery.plan import Source
from surgery.recipe import Recipe
from surgery.row_map import MEAN, ZERO, RowMap
from surgery.stacking import Stacking
from surgery.union_tokenizer import tokenizer_files, united
from surgery.vocabulary import Vocabulary, read_tokenizer, read_vocabulary
from surgery.wording import numbered, show, some

_PREDICTORS_HEAD = ".shared_head.head.weight"  # of the layers after the last that predict further tokens (DeepSeek-V3)


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
        self._known = _Vocabularies(self)
        self._maps: dict[str, tuple[list[str], RowMap]] = {}
        self.names = _token_tensors(stacking.start)
        if self._policy is None:
            return
        self._check_start()
        self._made = self._tokens()
        self.remarks += self._made.remarks
        if not self._made.as_in_start or len(self._made.own) != self._rows(self._role):
            self._replace()

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
        return _with_rows(info, len(self._made.own))

    def _check_start(self) -> None:
        """Everything that is needed of `start`, whatever the policy."""
        lender = self._recipe.output.tokenizer
        if lender not in (None, self._role):
            self._conflicts.output(
                "tokenizer",
                f"found `{lender}`, and with `vocabulary` the output has the tokenizer of `{self._role}`; "
                f"leave out one of the two",
            )
        if not self.names:
            self._refuse(f"`{self._role}` has no token embedding, so there are no rows to match")
        rows = self._rows(self._role)
        for name in sorted(self.names):
            found = self.stacking.start.tensors[name].shape[0]
            if found != rows:
                self._refuse(
                    f"`{name}` of `{self._role}` has {found} rows, and the embedding {rows}; expected a row for each "
                    f"token in both"
                )

    def _refuse(self, message: str) -> None:
        self._conflicts.output("vocabulary", message)
        self._conflicts.raise_all()

    def _tokens(self) -> OutputTokens:
        anatomies = {role: (model.anatomy.embedding, model.tensors) for role, model in self._inputs.items()}
        rows = {role: tensors[name].shape[0] for role, (name, tensors) in anatomies.items() if name is not None}
        try:
            return output_tokens(self._role, list(self._inputs), rows, self._known, self._recipe.output)
        except PlanError:
            raise
        except ValueError as error:
            self._refuse_tokens(error)
            raise

    def _refuse_tokens(self, error: Exception) -> None:
        union = "the tokenizer of `{}` cannot have the tokens of all roles: {}; take `start`"
        self._refuse(union.format(self._role, error) if self._policy == "union" else str(error))

    def vocabulary(self, role: str) -> Vocabulary:
        """The tokens of a role. Raises PlanError."""
        try:
            return read_vocabulary(self._inputs[role])
        except (CheckpointError, NotInstalledError) as error:
            self._refuse(f"tokens of `{role}` are not known: {error}")
            raise

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

    def _gathered(self, role: str, name: str, info: TensorInfo) -> Source | None:
        roles, rows = self._map(role)
        if rows.identity and info.shape[0] == len(self._made.own):
            return Source(role, info)
        others = [self._info(other, name) for other in roles[1:]]
        for part, (owner, found) in enumerate(zip(roles, [info, *others], strict=True)):
            if found is None:
                self._refuse(f"`{name}` is not in `{owner}`, which has tokens that `{self._role}` lacks")
            elif found.adapted is not None:
                self._refuse(
                    f"`{found.name}` of `{owner}` has an adapter, and its rows would be matched by token: merge the "
                    f"adapter first, `surgery apply merge-adapter {self._inputs[owner].source} OUT`"
                )
            elif part < len(rows.reach) and rows.reach[part] > found.shape[0]:
                text = self._known[owner].texts.get(rows.reach[part] - 1, "")
                self._refuse(
                    f"`{found.name}` of `{owner}` has {found.shape[0]} rows, and its tokenizer has the token "
                    f"{show(text)} with the id {rows.reach[part] - 1}; expected a row for each token: take the "
                    f"tokenizer that belongs to these weights"
                )
        pairs = zip(roles[1:], others, strict=True)
        return Source(role, info, rows, tuple(Source(other, found) for other, found in pairs if found is not None))

    def _map(self, role: str) -> tuple[list[str], RowMap]:
        """The roles that give rows where `role` is read, itself first, and the rows."""
        if role not in self._maps:
            places = list(self._made.places(role, self._known))
            roles = list(dict.fromkeys([role, *(other for other, _ in places if isinstance(other, str))]))
            number: dict[str | int, int] = {MEAN: MEAN, ZERO: ZERO, **{other: i for i, other in enumerate(roles)}}
            self._maps[role] = roles, RowMap.of([(number[other], row) for other, row in places])
            if role != self._role:
                self._remark(role, places)
        return self._maps[role]

    def _remark(self, role: str, places: Sequence[Place]) -> None:
        made = self._made
        named = {i: token[0] for i, token in enumerate(made.tokens) if token and made.given.get(i) == places[i]}
        tokens = [(token[0], places[i][0]) for i, token in enumerate(made.tokens) if token and i not in named]
        lacking = [text for text, owner in tokens if owner != role]
        found = {row for owner, row in places if owner == role}
        texts = self._known[role].texts
        dropped = [text for row, text in texts.items() if row not in found and text not in named.values()]
        told = (
            f"vocabulary: `{role}` has {len(tokens) - len(lacking):,} of the output's {numbered(len(tokens), 'token')}"
        )
        if named:
            told += f"; for {some(list(named.values()))} it counts as having the rows that the recipe names"
        if lacking:
            told += f"; it lacks {some(lacking)}, for which it counts as having the output's own rows"
        if dropped:
            told += f"; the output lacks {some(dropped)}, which {'is' if len(dropped) == 1 else 'are'} left out"
        self.remarks.append(told)

    def _replace(self) -> None:
        """Let the steps edit the rows of the output: other ones than those of `start`, with a tokenizer to them."""
        if self._made.new:
            try:
                read = read_tokenizer(self._inputs[self._role])
                made = united(read, self._known[self._role], self._made.new)
            except (ValueError, NotInstalledError) as error:
                self._refuse_tokens(error)
                return
            self.files = dict(tokenizer_files(self._inputs[self._role], made, self._made.new))
        for role in self._made.lenders:
            self._refuse_unlike(role)
        self._enlarge(self._rows(self._role))

    def _refuse_unlike(self, role: str) -> None:
        """The rows of added tokens must fit into the tensors of `start`."""
        start = self.stacking.start
        if self._inputs[role].tied != start.tied:
            words = {True: "tied to the embedding", False: "a matrix of its own"}
            self._refuse(
                f"the output head is {words[start.tied]} in `{self._role}` and {words[not start.tied]} in `{role}`, so "
                f"its rows for the tokens that `{self._role}` lacks do not mean the same; take `start`"
            )
        for name in sorted(self.names):
            ours, theirs = start.tensors[name], self._info(role, name)
            if theirs is None:
                self._refuse(
                    f"`{name}` is in `{self._role}` and not in `{role}`, which has tokens to add; take `start`"
                )
            elif theirs.shape[1:] != ours.shape[1:]:
                self._refuse(
                    f"`{name}` is {list(ours.shape)} in `{self._role}` and {list(theirs.shape)} in `{role}`; expected "
                    f"rows of one length"
                )
            elif not (ours.dtype.arithmetic and theirs.dtype.arithmetic):
                self._refuse(f"`{name}` is quantised, in `{self._role}` or in `{role}`; dequantise the model first")
            elif ours.dtype != theirs.dtype and self._recipe.output.dtype == "keep":
                self._refuse(
                    f"`{name}` is {ours.dtype.name} in `{self._role}` and {theirs.dtype.name} in `{role}`; name the "
                    f"dtype of the output, `--set output.dtype=bfloat16` (or float16, float32)"
                )

    def _enlarge(self, before: int) -> None:
        """What the steps edit: tensors with a row for each token, and a config that says so."""
        start, rows = self.stacking.start, len(self._made.own)
        origins = dict(self.stacking.origins)
        tensors = dict(start.tensors)
        for name in sorted(self.names):
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


class _Vocabularies(dict[str, Vocabulary]):
    """The tokens of roles, read when they are asked for."""

    def __init__(self, rows: TokenRows) -> None:
        super().__init__()
        self._rows = rows

    def __missing__(self, role: str) -> Vocabulary:
        self[role] = self._rows.vocabulary(role)
        return self[role]


def _token_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """The tensors with a row for each token: embedding, head with its bias, and their like beside the layers."""
    anatomy, tensors = checkpoint.anatomy, checkpoint.tensors
    if anatomy.embedding is None:
        return frozenset()
    rows = tensors[anatomy.embedding].shape[0]
    return frozenset(
        name
        for name, info in tensors.items()
        if name in (anatomy.embedding, anatomy.head)
        or (
            info.shape[:1] == (rows,)
            and (
                anatomy.group_of(name) == "lm_head"
                or (token_rank(name) is not None and len(info.shape) == 2)
                or name.endswith(_PREDICTORS_HEAD)
            )
        )
    )


def _with_rows(info: TensorInfo, rows: int) -> TensorInfo:
    shape = (rows, *info.shape[1:])
    return replace(info, shape=shape, nbytes=info.dtype.nbytes(prod(shape)))
