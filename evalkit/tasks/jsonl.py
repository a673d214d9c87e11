"""Your own prompts and references, from files of one JSON record a line.

    {"prompt": "2 + 2 =", "reference": "4"}
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2 ="}], "reference": 4}
    {"prompt": "Which is a city?", "choices": ["Rome", "Nile"], "reference": "A", "grader": "choice", "key": "geo-1"}

`reference` may be a list, of which any is right, except with choices. `grader` overrides the task's; a record with
`choices` needs none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, PrivateAttr

from evalkit import graders
from evalkit.draw import Draw
from evalkit.errors import TaskError
from evalkit.graders import GraderName, choice
from evalkit.records import Records, read_records
from evalkit.task import TEST, Conversation, Data, Example, Grade, Task, Turn
from surgery.errors import SHOWN_FAULTS, Fault
from surgery.wording import did_you_mean, show

_ASK = "Answer with the letter of the right choice."


class Jsonl(Task):
    """Your own prompts and references: --set id=FILE, --set ood=FILE, and any other name as a further split."""

    # A name that is no parameter is a split: `--set hard=hard.jsonl`.
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, str]

    name: ClassVar[str] = "jsonl"
    version: ClassVar[int] = 1
    episodes: ClassVar[int | None] = None  # all that there are
    divided: ClassVar[bool] = False  # the files are the user's, and so is their division
    kinds: ClassVar[tuple[str, ...]] = graders.KINDS

    id: str = Field(description="File of the records in distribution")
    ood: str | None = Field(None, description="File of the records out of distribution")
    grader: GraderName = Field("exact", description="How answers are compared, where a record does not say")

    _read: dict[str, Records] = PrivateAttr(default_factory=dict)

    @property
    def splits(self) -> Mapping[str, str]:
        """The splits and their files."""
        return {split: f"{len(file.records)} records of {file.path}" for split, file in self._files().items()}

    @property
    def scored(self) -> tuple[str, ...]:
        """All of them: whoever names a file wants it scored."""
        return tuple(self.splits)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The parameters, with the BLAKE3 digest of each file in place of its path: a moved file is the same."""
        return {"grader": self.grader, "files": {split: file.digest for split, file in self._files().items()}}

    def draw(self, split: str, draw: Draw) -> Data | None:
        """The data of any record."""
        return draw.choice(self._files()[split].records)

    def examples(
        self,
        split: str,
        n: int | None = None,
        seed: int = 0,
        part: str = TEST,
        fewer: bool = True,  # noqa: ARG002  (as always here)
    ) -> list[Example]:
        """At most n records, which the seed takes from the file; all of them where n is None or larger.

        More examples begin with the same ones. Raises TaskError for an unknown split, for any part but `test`, and
        for everything that is wrong with the files.
        """
        if part != TEST:
            raise TaskError(
                f"jsonl: found the part {show(part)}, but parts do not apply to your own files; leave out `--part`, "
                "and give the records that you mean in a file of their own"
            )
        self.check_split(split)
        records = Draw(self.name, self.version, split, seed).shuffled(self._files()[split].records)
        return [Example(split, i, self.key(data), data) for i, data in enumerate(records[:n])]

    def question(self, data: Data) -> str:
        """The prompt or the last message, with the choices below it."""
        text: str = data["prompt"] if "prompt" in data else data["messages"][-1]["content"]
        return f"{text}\n\n{choice.listed(data['choices'])}\n\n{_ASK}" if "choices" in data else text

    def key(self, data: Data) -> str:
        """The record's `key`, or all that is asked."""
        earlier = data.get("messages", ())[:-1]
        asked = self.question(data)
        found: str = data.get("key") or (json.dumps([*earlier, asked], ensure_ascii=False) if earlier else asked)
        return found

    def prompt(self, data: Data, history: Sequence[Turn] = (), question: str | None = None) -> Conversation:
        """The conversation, which begins with the record's earlier messages."""
        return (*data.get("messages", ())[:-1], *super().prompt(data, history, question))

    def grade(self, data: Data, answer: str) -> Grade:
        """What the record's grader says."""
        return graders.grade(data["grader"], answer, data["reference"], data.get("choices", ()))

    def reference(self, data: Data) -> str:
        """The first reference; of choices the letter. Raises TaskError for a pattern, which is no answer."""
        first: str = data["reference"][0]
        if data["grader"] == "regex":
            raise TaskError(
                f"jsonl: the reference {show(first)} is a pattern, which no model answers with; for the loss of "
                "reference answers give the answers, with the grader `exact`"
            )
        return choice.letter(first, data["choices"]) if data["grader"] == "choice" else first

    def _files(self) -> Mapping[str, Records]:
        """The files by split, read once. Raises TaskError with all their faults."""
        if not self._read:
            faults: list[Fault] = []
            paths = {"id": self.id, "ood": self.ood, **(self.__pydantic_extra__ or {})}
            read = {}
            for split, path in paths.items():
                if path is None:
                    continue
                try:
                    read[split] = read_records(path, self.grader, faults)
                except OSError as error:
                    faults.append(Fault(path, f"cannot be read: {error.strerror}{self._parameter_meant(split)}"))
            if faults:
                more = [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
                raise TaskError("\n".join([*map(str, faults[:SHOWN_FAULTS]), *more]))
            self._read.update(read)
        return self._read

    def _parameter_meant(self, split: str) -> str:
        """The end of a message about a split whose file is not there: its name may be a mistyped parameter."""
        parameters = type(self).model_fields
        if split in parameters:
            return ""
        near = did_you_mean(split, parameters)
        meant = f" (did you mean `{near}`?)" if near else ""
        return f"; {show(split)} is no parameter, so its value is taken as the file of a split{meant}"
