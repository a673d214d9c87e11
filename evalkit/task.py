"""What a task is: data that a seed determines, a prompt, and a grade.

A subclass of `Task` is one file. It says how an example is drawn, what is asked, and what an answer is worth;
everything else (splits held apart, retries, statistics) follows from that.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from evalkit.draw import Draw
from evalkit.errors import TaskError
from surgery.wording import suggestion

Message = Mapping[str, str]  # {"role": "user", "content": "..."}, as chat templates take it
Conversation = tuple[Message, ...]
Data = Mapping[str, Any]  # of one example: plain JSON values

CORRECT = "correct"  # the `kind` of a right answer
UNPARSABLE = "unparsable"  # the failure that every task shares: no answer of the form asked for

# Per cent of the keys, for each use of the data. A key belongs to one part for good, so what a model was
# trained on is never what it is tested on.
PARTS = {"train": 40, "rl": 20, "validation": 10, "test": 30}
TEST = "test"

MISSES = 20_000  # draws in a row without a new example, after which there are taken to be no more


@dataclass(frozen=True, slots=True)
class Grade:
    """What an answer is worth.

    `kind` is `CORRECT` or the kind of failure, `reason` one sentence that tells it to the model and to the user,
    `value` what the answer came to (`"24"`, `"7/3"`) where there is a value.
    """

    kind: str
    reward: float
    reason: str
    value: str | None = None

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.kind == CORRECT


@dataclass(frozen=True, slots=True)
class Turn:
    """One attempt: the model's answer and its grade."""

    answer: str
    grade: Grade


@dataclass(frozen=True, slots=True)
class Example:
    """One problem of a split; `index` counts from 0 in the order in which the seed draws them.

    `key` names the problem below its surface (a hand's sorted values): examples of one key share a part, and
    the statistics count them as one cluster.
    """

    split: str
    index: int
    key: str
    data: Data


def part_of(task: str, key: str) -> str:
    """The part that a key belongs to: a hash of task and key, so for ever and on every machine the same."""
    number = int.from_bytes(hashlib.blake2b(f"{task}/{key}".encode(), digest_size=8).digest()) % 100
    for part, share in PARTS.items():
        if number < share:
            return part
        number -= share
    raise AssertionError("the shares do not add up to 100")


class Task(BaseModel):
    """A task; its fields are its parameters (`--set target=36`), its first docstring line what `--list` shows.

    Raise `version` with every change that gives other examples, prompts or grades: it is part of what results are
    kept under.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: ClassVar[str]
    version: ClassVar[int]
    episodes: ClassVar[int | None] = 234  # the default of `--n`, as in the paper's evaluation (arXiv 2509.12235)
    attempts: ClassVar[int] = 1  # the default of `--attempts`
    max_tokens: ClassVar[int] = 256  # the default of `--max-tokens`, for one answer
    divided: ClassVar[bool] = True  # whether its examples belong to parts
    kinds: ClassVar[tuple[str, ...]] = (UNPARSABLE, "wrong value")  # the failures that `grade` knows, mildest last

    @property
    def splits(self) -> Mapping[str, str]:
        """The splits and what each is, in a line."""
        return {"id": "in distribution", "ood": "out of distribution"}

    @property
    def scored(self) -> tuple[str, ...]:
        """The splits that are scored where none are named."""
        return tuple(split for split in ("id", "ood") if split in self.splits)

    @property
    def words(self) -> tuple[str, ...]:
        """All words of questions and answers, where these are a few words with spaces between; otherwise none."""
        return ()

    @property
    def identity(self) -> Mapping[str, Any]:
        """The parameters as plain data, and whatever else of the outside (files) the examples depend on."""
        return self.model_dump(mode="json")

    @abstractmethod
    def draw(self, split: str, draw: Draw) -> Data | None:
        """The data of one random example of the split, or None where this draw gives none (it is tried again)."""

    @abstractmethod
    def question(self, data: Data) -> str:
        """What is asked: the text of the first user message."""

    @abstractmethod
    def grade(self, data: Data, answer: str) -> Grade:
        """What an answer is worth. Pure, exact, and quick whatever the answer holds."""

    @abstractmethod
    def reference(self, data: Data) -> str:
        """A right answer, as a trained model should give it."""

    def key(self, data: Data) -> str:
        """What makes two examples the same problem. Default: their question."""
        return self.question(data)

    def prompt(self, data: Data, history: Sequence[Turn] = (), question: str | None = None) -> Conversation:
        """The conversation that asks for the next answer; `question` stands in for the task's own."""
        messages = [{"role": "user", "content": self.question(data) if question is None else question}]
        for turn in history:
            messages.append({"role": "assistant", "content": turn.answer})
            messages.append({"role": "user", "content": f"{turn.grade.reason} Try again, in the same form."})
        return tuple(messages)

    def examples(
        self, split: str, n: int | None = None, seed: int = 0, part: str = TEST, fewer: bool = False
    ) -> list[Example]:
        """The first n examples (default: `episodes`) that the seed draws from a part of a split, no two of them alike.

        More examples begin with the same ones. Raises TaskError for an unknown split or part, and where there are
        fewer than n; with `fewer`, only where there are none.
        """
        self.check_split(split)
        if part not in PARTS:
            raise TaskError(f"unknown part `{part}`; {suggestion(part, PARTS, 'the parts')}")
        n = self.episodes if n is None else n
        assert n is not None, "a task without a number of episodes overrides this method"
        draw = Draw(self.name, self.version, split, part, seed)
        found: dict[str, Example] = {}
        misses = 0
        while len(found) < n:
            data = self.draw(split, draw)
            question = None if data is None else self.question(data)
            if data is None or question is None or question in found or part_of(self.name, self.key(data)) != part:
                misses += 1
                if misses == MISSES:
                    if fewer and found:
                        break
                    has = f"no more than {len(found)} examples; ask for at most that many (`--n {len(found)}`)"
                    raise TaskError(
                        f"{self.name}: the part `{part}` of the split `{split}` has "
                        + (has if found else "no examples; choose other parameters, or another part")
                    )
                continue
            misses = 0
            found[question] = Example(split, len(found), self.key(data), data)
        return list(found.values())

    def check_split(self, split: str) -> None:
        """Raise TaskError unless the split exists."""
        if split not in self.splits:
            known = suggestion(split, self.splits, "the splits")
            raise TaskError(f"{self.name} has no split `{split}`; {known}")
