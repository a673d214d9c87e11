"""The tokens of an output, row by row: where each row begins, and what models without a token count as having."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from surgery.output_section import Output, TokenRow
from surgery.row_map import MEAN, ZERO
from surgery.union_tokenizer import NewToken, new_tokens
from surgery.vocabulary import Vocabulary
from surgery.wording import did_you_mean, numbered, show, some

Place = tuple[str | int, int]  # a role, or ZERO or MEAN, and a row there


@dataclass
class OutputTokens:
    """The rows of an output that begins from the role `start`.

    `tokens` has of each row its token, with the role whose spelling that is, None for padding; `own` where the output
    begins there. `given` are the rows that the recipe gives to roles without a token, by row; those in `forced` all
    roles have. `new` are tokens that `start` lacks.
    """

    start: str
    tokens: list[tuple[str, str] | None]
    own: list[Place]
    given: dict[int, Place] = field(default_factory=dict)
    forced: set[int] = field(default_factory=set)
    new: list[NewToken] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def as_in_start(self) -> bool:
        """Whether the output begins with the rows of `start`."""
        return not self.new and self.own == [(self.start, i) for i in range(len(self.own))]

    @property
    def lenders(self) -> list[str]:
        """The other roles that give rows to roles without a token."""
        places = [*self.own, *self.given.values()]
        return [role for role in dict.fromkeys(role for role, _ in places) if role != self.start and type(role) is str]

    def places(self, role: str, vocabularies: Mapping[str, Vocabulary]) -> Iterator[Place]:
        """Where the row of each token is, as seen from a role."""
        for i, (token, own) in enumerate(zip(self.tokens, self.own, strict=True)):
            if role == self.start or token is None or i in self.forced:
                yield own
                continue
            found = vocabularies[role].find(token[0], vocabularies[token[1]])
            yield self.given.get(i, own) if found is None else (role, found)


def output_tokens(
    start: str, roles: Sequence[str], rows: Mapping[str, int], vocabularies: Mapping[str, Vocabulary], output: Output
) -> OutputTokens:
    """The tokens that the output section asks for; `rows` are the numbers of rows of the roles that have some.

    Raises ValueError, whose message is about `vocabulary`, when that cannot be.
    """
    ours, asked = vocabularies[start], output.tokens or {}
    known: list[tuple[str, str] | None] = [
        (ours.texts[i], start) if i in ours.texts else None for i in range(rows[start])
    ]
    made = OutputTokens(start, known, [(start, i) for i in range(rows[start])])
    if output.vocabulary == "union":
        made.new = new_tokens(start, {role: vocabularies[role] for role in roles})
        _tell_united(made)
    made.new += _asked(asked, ours, made.new)
    if made.new or output.pad_vocabulary_to is not None:
        _check_top(start, rows[start], ours)
    _place_new(made, rows[start])
    ids = {**ours.ids, **{token.text: token.id for token in made.new}}
    for text, row in asked.items():
        _give(made, text, ids[text], row, rows, vocabularies)
    if output.pad_vocabulary_to is not None:
        _pad(made, max(ids.values(), default=-1) + 1, output.pad_vocabulary_to)
    return made


def _tell_united(made: OutputTokens) -> None:
    if not made.new:
        made.remarks.append(f"vocabulary: no role has a token that `{made.start}` lacks; none is added")
    for role in dict.fromkeys(token.role for token in made.new):
        made.remarks.append(f"vocabulary: adds {some([t.text for t in made.new if t.role == role])} of `{role}`")


def _asked(tokens: Mapping[str, TokenRow], ours: Vocabulary, united: Sequence[NewToken]) -> list[NewToken]:
    """Tokens of the recipe's own, numbered after those that there are."""
    known = {*ours.ids, *(token.text for token in united)}
    following = max(ours.ids.values(), default=-1) + 1 + len(united)
    lacking = [text for text in tokens if text not in known]
    settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False) | {"normalized": True}
    return [NewToken(text, following + i, {"content": text, **settings}, None, ZERO) for i, text in enumerate(lacking)]


def _check_top(start: str, rows: int, ours: Vocabulary) -> None:
    top = max(ours.ids.values(), default=-1)
    if top >= rows:
        raise ValueError(
            f"the embedding of `{start}` has {rows} rows, and its tokenizer has the token {show(ours.texts[top])} with "
            f"the id {top}; expected a row for each token: take the tokenizer that belongs to these weights"
        )


def _place_new(made: OutputTokens, rows: int) -> None:
    """Give the new tokens their rows: padding of `start` first, then rows behind its own."""
    more = max(0, made.new[-1].id + 1 - rows) if made.new else 0
    made.tokens += [None] * more
    made.own += [(made.start, -1)] * more
    for token in made.new:
        made.tokens[token.id] = token.text, token.role or made.start
        made.own[token.id] = (ZERO, 0) if token.role is None else (token.role, token.id_there)


def _give(
    made: OutputTokens,
    text: str,
    number: int,
    asked: TokenRow,
    rows: Mapping[str, int],
    vocabularies: Mapping[str, Vocabulary],
) -> None:
    """Put a row that the recipe names in its place."""
    if number >= len(made.own):
        raise ValueError(f"the embedding of `{made.start}` has {len(made.own)} rows, and {show(text)} the id {number}")
    place: Place = (ZERO, 0)
    if isinstance(asked.from_, str):
        spelling = vocabularies[(made.tokens[number] or ("", made.start))[1]]
        place = asked.from_, _row_of(asked.from_, text, asked.token, rows, vocabularies[asked.from_], spelling)
    made.given[number] = place
    new = next((token for token in made.new if token.id == number), None)
    if asked.force:
        made.forced.add(number)
    if asked.force or new is not None:
        made.own[number] = place
    if new is not None and new.role is None:
        made.remarks.append(f"vocabulary: adds the token {show(text)}, with the id {number}")


def _row_of(
    role: str, text: str, other: str | int | None, rows: Mapping[str, int], theirs: Vocabulary, ours: Vocabulary
) -> int:
    """The row that a role has for a token, or for an `other` one, which is named by text or number."""
    if other is None:
        row = theirs.find(text, ours)
        remedy = f"say of which token the row is: `{{from: {role}, token: ...}}`"
        found = text
    else:
        row = other if isinstance(other, int) else theirs.ids.get(other)
        near = None if isinstance(other, int) else did_you_mean(other, theirs.added)
        remedy = f"did you mean `{near}`?" if near else "name one of its tokens"
        found = str(other)
    if row is None:
        raise ValueError(f"`{role}` has no token {show(found)}, whose row {show(text)} would get; {remedy}")
    if row >= rows.get(role, 0):
        raise ValueError(f"the embedding of `{role}` has {rows.get(role, 0)} rows, and {show(found)} is the row {row}")
    return row


def _pad(made: OutputTokens, used: int, multiple: int) -> None:
    """Rows beyond the tokens: as many as make a multiple."""
    if not used:
        raise ValueError(f"`{made.start}` has no tokens, so there is nothing to pad")
    before, rows = len(made.own), -(-used // multiple) * multiple
    made.tokens = [*made.tokens[:used], *[None] * (rows - used)]
    made.own = [*made.own[:used], *[(MEAN, 0)] * (rows - used)]
    told = f"vocabulary: {rows:,} rows for ids up to {used - 1:,}"
    if rows > used:
        told += f"; {numbered(rows - used, 'row')} of padding are the mean of the others"
    if before > used:
        told += f"; {numbered(before - used, 'row')} of padding in `{made.start}` are left out"
    made.remarks.append(told)
