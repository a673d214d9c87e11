"""What supervised fine-tuning learns from: conversations, read from files of one JSON record a line.

    {"prompt": "2 + 2 =", "completion": "4"}
    {"prompt": [{"role": "user", "content": "2 + 2 ="}], "completion": [{"role": "assistant", "content": "4"}]}
    {"messages": [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "4"}], "key": "2,2"}

The assistant's messages are learned, those of a `prompt` excepted: they are given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.json_lines import Wrong, check_keys, lines, messages_of, parse, refuse, shown, text_of
from evalkit.task import Conversation, Message
from surgery.errors import Fault
from trainers.errors import DataError

ANSWER = "assistant"  # the role whose messages are learned
ORIGIN = ("task", "split", "part", "data")  # what `trainers.data.export` writes beside a record; not read again

_KEYS = ("prompt", "completion", "messages", "key")


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation that ends with an answer, and the key by which training and held-out data are told apart.

    The assistant's messages from number `given` on are learned; it is 0 unless there are earlier ones that are not.
    """

    messages: Conversation
    key: str
    given: int = 0

    @property
    def answers(self) -> tuple[int, ...]:
        """The numbers of the messages that are learned, at least one."""
        return tuple(i for i, m in enumerate(self.messages) if i >= self.given and m["role"] == ANSWER)


def read_records(path: str) -> list[Record]:
    """The records of a file in its order; the default key is the JSON of all messages before the last.

    Raises DataError with everything that is wrong with the file.
    """
    records: list[Record] = []
    faults: list[Fault] = []
    try:
        for number, line in lines(path):
            try:
                record = parse(line, number)
                if record is not None:
                    records.append(_record(record))
            except Wrong as wrong:
                faults.append(Fault(f"{path}:{number}", str(wrong)))
    except OSError as error:
        faults.append(Fault(path, f"cannot be read: {error.strerror or error}"))
    if not records and not faults:
        faults.append(Fault(path, "holds no records; give one JSON object a line"))
    if faults:
        raise DataError(faults)
    return records


def plain(record: Record) -> dict[str, Any]:
    """The record as plain data, which is read back as an equal one."""
    messages = [dict(message) for message in record.messages]
    if not record.given:
        return {"messages": messages, "key": record.key}
    return {"prompt": messages[: record.given], "completion": messages[record.given :], "key": record.key}


def _record(record: Mapping[str, Any]) -> Record:
    """Raises Wrong."""
    check_keys(record, _KEYS, silent=ORIGIN)
    given, messages = _conversation(record)
    if messages[-1]["role"] != ANSWER:
        refuse(f"the last message is from {shown(messages[-1]['role'])}; end with the assistant's, which is learned")
    if messages[0]["role"] == ANSWER:
        refuse("the first message is from `assistant`; begin with what it answers")
    earlier = any(message["role"] == ANSWER for message in messages[:given])
    key = text_of(record, "key") if "key" in record else json.dumps(messages[:-1], ensure_ascii=False)
    return Record(tuple(messages), key, given if earlier else 0)


def _conversation(record: Mapping[str, Any]) -> tuple[int, Sequence[Message]]:
    """How many messages are given, and all of them. Raises Wrong."""
    if "messages" in record:
        for key in ("prompt", "completion"):
            if key in record:
                refuse(f"both `messages` and `{key}`; give `messages`, or `prompt` and `completion`")
        return 0, _ordered(messages_of(record, "messages"))
    for key, other in (("prompt", "completion"), ("completion", "prompt")):
        if key not in record:
            beside = f"`{other}` without `{key}`" if other in record else "neither `messages` nor `prompt`"
            refuse(f"{beside}; give `messages`, or `prompt` and `completion`")
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) != isinstance(completion, list):
        listed, text = ("prompt", "completion") if isinstance(prompt, list) else ("completion", "prompt")
        refuse(f"`{listed}` is a list and `{text}` is {shown(record[text])}; give two texts, or two lists of messages")
    if isinstance(prompt, list):
        before = _ordered(messages_of(record, "prompt"))
        return len(before), [*before, *_ordered(messages_of(record, "completion"))]
    texts = (("user", text_of(record, "prompt")), (ANSWER, text_of(record, "completion")))
    return 1, [{"role": role, "content": text} for role, text in texts]


def _ordered(messages: Sequence[Message]) -> list[Message]:
    """The messages with their keys in one order, on which a default key depends."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]
