"""YAML text as plain data, with the line of every path and everything that is wrong with the YAML itself.

The event stream of ruamel.yaml is read instead of its node tree: events keep the marks of the nodes, and
nesting and size can be bounded while they arrive. Scalars follow the core schema of YAML 1.2 (section 10.3):
`yes` and `012:30` are text. Anchors, aliases and tags are refused: parameters say the same more plainly. Files of
other programs may have them (`surgery.mergekit.yaml_file`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from surgery.errors import Fault, RecipeError
from surgery.source import MAX_DEPTH, MAX_INTEGER, MAX_NODES, Mistake, Path, Source, text_fault
from surgery.wording import show

MAX_BYTES = 1_000_000
SECOND = "a second document starts here; expected one"
_USED_TWICE = "for a value that is used twice declare a parameter"
MAX_LINE = 20_000  # characters; the scanner's time is quadratic in the length of some tokens

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # section 5.1
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_HINTS = (  # what the parser says -> what to do
    ("'\\t'", "indent with spaces"),
    ("'%'", "put the value in quotes"),
    ("'@'", "put the value in quotes"),
    ("'`'", "put the value in quotes"),
    ("mapping values are not allowed", "put a value that holds a colon in quotes"),
    ("stream end", "a bracket or a quote is not closed"),
    ("end of stream", "a quote is not closed"),
    ("block end", "the indentation does not line up"),
)


def read_yaml(content: str | bytes, origin: str, reader: Reader | None = None) -> Source:
    """Read one YAML document; by a `reader` that takes more of YAML, if there is one.

    What is wrong with single values is in the result's `mistakes`; an empty document gives None as data.
    Raises RecipeError when there is nothing to go on with: not UTF-8, a syntax error, a limit exceeded.
    """
    text = _decode(content, origin)
    reader = reader or Reader(origin)
    try:
        data = reader.document(YAML(typ="safe", pure=True).parse(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        hint = next((f"; {advice}" for sign, advice in _HINTS if sign in what), "")
        column = f" at column {mark.column + 1}" if mark else ""
        _refuse(origin, mark.line + 1 if mark else 1, f"not valid YAML{column}: {what}{hint}")
    except RecipeError:
        raise
    except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF" that is no character
        _refuse(origin, reader.line, f"not valid YAML at or after this line: {error}")
    return Source(origin, text, data, reader.lines, tuple(reader.mistakes))


def resolve(text: str) -> object:
    """A plain scalar's value by the core schema, infinities and NaN included.

    Raises ValueError for an integer beyond MAX_INTEGER.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        digits = len(text)
        value = int(text, 0 if text[:2] in ("0o", "0x") else 10) if digits <= 40 else None
        if value is None or abs(value) > MAX_INTEGER:
            raise ValueError(f"found an integer of {digits} digits; expected at most {MAX_INTEGER}")
        return value
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _decode(content: str | bytes, origin: str) -> str:
    """The text without its byte order mark. Raises RecipeError: too large, not UTF-8, control characters."""
    if len(content) > MAX_BYTES:
        _refuse(origin, 1, f"larger than {MAX_BYTES:,} bytes; expected a file written by hand")
    if isinstance(content, bytes):
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            _refuse(origin, 1, "found UTF-16; save the file as UTF-8")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            found = f"found the byte 0x{content[error.start]:02x}, which is not UTF-8"
            _refuse(origin, line, f"{found}; save the file as UTF-8")
    else:
        text = content
    text = text.removeprefix("\ufeff")
    bad = _UNPRINTABLE.search(text)
    if bad:
        line = text.count("\n", 0, bad.start()) + 1
        _refuse(origin, line, f"found the control character U+{ord(bad[0]):04X}; expected a text file")
    for number, line_text in enumerate(text.split("\n"), start=1):
        if len(line_text) > MAX_LINE:
            _refuse(origin, number, f"a line of {len(line_text):,} characters; expected at most {MAX_LINE:,}")
    return text


def _refuse(origin: str, line: int, message: str) -> NoReturn:
    raise RecipeError([Fault(f"{origin}:{line}", message)]) from None


class Reader:
    """Builds the data of one document from its events."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.lines: dict[Path, int] = {}
        self.mistakes: list[Mistake] = []
        self.line = 1
        self.nodes = 0

    def document(self, events: Iterator[Event]) -> object:
        data: object = None
        documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._wrong((), event, SECOND, void=False)
                    break
                if event.version not in (None, (1, 2)):
                    message = "found a `%YAML` directive of another version; expected YAML 1.2"
                    self._wrong((), event, message, void=False)
            elif isinstance(event, NodeEvent):
                data = self._value(event, events, ())
        return data

    def _value(self, event: Event, events: Iterator[Event], path: Path) -> object:
        self.line = event.start_mark.line + 1
        self.nodes += 1
        if self.nodes > MAX_NODES:
            _refuse(self.origin, self.line, f"more than {MAX_NODES:,} values; expected a file written by hand")
        if len(path) > MAX_DEPTH:
            _refuse(self.origin, self.line, f"nested deeper than {MAX_DEPTH} levels")
        self.lines.setdefault(path, self.line)
        if isinstance(event, NodeEvent):
            self._check_properties(event, path)
        return self._content(event, events, path)

    def _content(self, event: Event, events: Iterator[Event], path: Path) -> object:
        if isinstance(event, SequenceStartEvent):
            return self._list(events, path)
        if isinstance(event, MappingStartEvent):
            return self._map(events, path)
        return self._scalar(event, path) if isinstance(event, ScalarEvent) else None

    def _check_properties(self, event: NodeEvent, path: Path) -> None:
        if isinstance(event, AliasEvent):
            advice = f"put a glob that starts with `*` in quotes; {_USED_TWICE}"
            self._wrong(path, event, f"found the YAML alias {show(f'*{event.anchor}')}; {advice}")
        elif (tag := getattr(event, "tag", None)) is not None:
            found = f"found the YAML tag {show(str(tag))}"
            self._wrong(path, event, f"{found}; expected a value without a tag")
        elif event.anchor is not None:
            found = f"found the YAML anchor {show(f'&{event.anchor}')}"
            self._wrong(path, event, f"{found}; {_USED_TWICE}", void=False)

    def _list(self, events: Iterator[Event], path: Path) -> list[object]:
        items: list[object] = []
        while not isinstance(event := next(events), SequenceEndEvent):
            items.append(self._value(event, events, (*path, len(items))))
        return items

    def _map(self, events: Iterator[Event], path: Path) -> dict[str, object]:
        items: dict[str, object] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            key = self._key(event, events, path)
            child = (*path, key if key is not None else "?")
            first = self.lines.get(child)
            line = event.start_mark.line + 1
            self.lines.setdefault(child, line)
            value = self._value(next(events), events, child)
            if key is None:
                continue
            if key in items:
                message = f"{show(key)} is already set on line {first} and again on line {line}; keep one"
                self.mistakes.append(Mistake(child, message, line, void=False))
            else:
                items[key] = value
        return items

    def _key(self, event: Event, events: Iterator[Event], path: Path) -> str | None:
        if isinstance(event, ScalarEvent) and event.tag is None and event.anchor is None:
            return self._text(event, path)
        self._wrong(path, event, "found a key that is not plain text; expected a name", void=False)
        if not isinstance(event, ScalarEvent | AliasEvent):
            self._value(event, events, (*path, "?"))
        return None

    def _scalar(self, event: ScalarEvent, path: Path) -> object:
        text = self._text(event, path)
        if text is None:
            return None
        try:
            value = self._resolved(event, text)
        except ValueError as error:
            self._wrong(path, event, str(error))
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self._wrong(path, event, f"found {show(text)}; expected a finite number")
            return None
        return value

    def _resolved(self, event: ScalarEvent, text: str) -> object:
        return resolve(text) if event.implicit[0] else text

    def _text(self, event: ScalarEvent, path: Path) -> str | None:
        """The scalar's text, its surrogate pairs joined: JSON escapes characters as pairs."""
        text = str(event.value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        fault = text_fault(text)
        if fault is not None:
            self._wrong(path, event, fault)
        return text if fault is None else None

    def _wrong(self, path: Path, event: Event, message: str, *, void: bool = True) -> None:
        self.mistakes.append(Mistake(path, message, event.start_mark.line + 1, void))
