"""From conversations to token ids, and which of them are learned: answers and the tokens that end them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evalkit.engines.base import Prompt
from evalkit.errors import EngineError
from evalkit.rendering import Renderer
from evalkit.run import plain
from surgery.errors import Fault
from trainers.errors import DataError
from trainers.records import Record

# What a renderer's advice calls these keys: it speaks to users of `surgery eval`.
_OPTIONS = {"`--chat-template FILE`": "`chat_template: FILE`", "`--no-chat`": "`chat: false`"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sequence of token ids, and for each whether the loss is over it; both have the sequence's length."""

    ids: tuple[int, ...]
    response: tuple[bool, ...]


def encode(renderer: Renderer, record: Record, chat: bool) -> list[Encoded]:
    """A record as sequences in which every answer that is learned is marked once, its end included, and nothing else.

    Each answer follows the tokens that a model would be asked with at that turn, as in `Renderer.pair`. Turns share a
    sequence as long as the next prompt begins with all tokens so far; where it does not, since a template rewrites
    earlier turns or ends them otherwise, a new sequence begins. Without `chat`, messages become plain text.
    Raises EngineError.
    """
    sequences: list[tuple[list[int], list[bool]]] = []
    for prompt, answer in _turns(record, chat):
        first, response = renderer.pair(prompt, answer, end=True)
        if not sequences or first[: len(sequences[-1][0])] != sequences[-1][0]:
            sequences.append(([], []))
        ids, marks = sequences[-1]
        marks += [False] * (len(first) - len(ids)) + [True] * len(response)
        ids[:] = [*first, *response]
    return [Encoded(tuple(ids), tuple(marks)) for ids, marks in sequences]


def encode_all(
    renderer: Renderer, records: Sequence[Record], chat: bool, max_length: int | None, where: str
) -> list[Encoded]:
    """The sequences of all records, in their order; `where` names the records for messages.

    Raises DataError for records that cannot be rendered, and for sequences of more than `max_length` tokens or more
    than the model has positions for: none is ever cut.
    """
    encoded: list[Encoded] = []
    failed: dict[str, list[int]] = {}  # the same for many records, mostly
    lengths: list[tuple[int, int]] = []  # of sequences, and the number of the record
    for number, record in enumerate(records, 1):
        try:
            found = encode(renderer, record, chat)
        except EngineError as error:
            failed.setdefault(in_configuration(error), []).append(number)
            continue
        encoded += found
        lengths += [(len(sequence.ids), number) for sequence in found]
    faults = [Fault(where, f"{_which(numbers, len(records))}: {message}") for message, numbers in failed.items()]
    faults += [Fault(where, message) for message in _too_long(lengths, max_length, renderer)]
    if faults:
        raise DataError(faults)
    return encoded


def in_configuration(error: EngineError) -> str:
    """A renderer's message with the names that its remedies have in a training configuration."""
    message = str(error)
    for option, key in _OPTIONS.items():
        message = message.replace(option, key)
    return message


def _turns(record: Record, chat: bool) -> Iterator[tuple[Prompt, str]]:
    for number in record.answers:
        before = record.messages[:number]
        yield before if chat else plain(before), record.messages[number]["content"]


def _which(numbers: Sequence[int], total: int) -> str:
    if len(numbers) == 1:
        return f"record {numbers[0]:,}"
    return f"{len(numbers):,} of {total:,} records, the first of them number {numbers[0]:,}"


def _too_long(lengths: Sequence[tuple[int, int]], max_length: int | None, renderer: Renderer) -> Iterator[str]:
    context = renderer.context
    limit = min((n for n in (max_length, context) if n is not None), default=None)
    over = [each for each in lengths if limit is not None and each[0] > limit]
    if not over or limit is None:
        return
    longest, number = max(over, key=lambda each: each[0])
    positions = f"the model's context of {context:,} tokens"
    if limit == context:
        allowed, remedy = positions, "shorten or leave out these records, or choose a model with a longer context"
    else:
        allowed, remedy = f"`max_length` {limit:,}", "raise `max_length`, or shorten or leave out these records"
        remedy += f" ({positions} is a limit too)" if context is not None and longest > context else ""
    yield (
        f"{len(over):,} of {len(lengths):,} sequences {'is' if len(over) == 1 else 'are'} longer than {allowed}; the "
        f"longest, of record {number:,}, has {longest:,}; {remedy}"
    )
