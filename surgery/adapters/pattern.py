"""Regular expressions of module names that come from a file nobody vouches for, matched without backtracking.

Python's `re` tries one way after the other, which for `(a+)+$` takes time exponential in the length of a name. Here
all ways are followed at once, a set of states for each character (Thompson 1968, "Regular Expression Search
Algorithm"), and sets that were met are remembered: time grows at most as states x characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

LONGEST = 1_000  # characters; names of modules have a tenth
MOST_STATES = 5_000  # of one expression, whose counted repetitions are written out
_DEEPEST = 20  # groups in each other
_COUNTS = re.compile(r"\{(\d{1,4})(?:(,)(\d{0,4}))?\}", re.ASCII)
_KINDS = re.compile(r"\\[dDwWsS]")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]")
_DOUBTFUL = re.compile(r"(?<!^)\[|--|&&|~~|\|\|")  # of a class: Python may give these another meaning one day
_EXPECTED = "expected names, `.`, `[...]`, `(...)`, `|`, `^`, `$` and the repetitions `*`, `+`, `?` and `{m,n}`"

Test = Callable[[str], object]  # whether a character is one of those meant


@dataclass(frozen=True, slots=True)
class _One:
    test: Test


@dataclass(frozen=True, slots=True)
class _Edge:
    end: bool  # of the name, or else its beginning


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: Sequence[_Node]


@dataclass(frozen=True, slots=True)
class _Choice:
    parts: Sequence[_Node]


@dataclass(frozen=True, slots=True)
class _Repeated:
    part: _Node
    least: int
    most: int | None


_Node = _One | _Edge | _Sequence | _Choice | _Repeated


class Pattern:
    """An expression that a whole name, or its end after a dot, may match, as PEFT has it.

    What Python's `re` has beyond groups, classes and repetitions (assertions, back references, flags) is refused.
    Raises ValueError.
    """

    def __init__(self, text: str) -> None:
        before = _Repeated(_Sequence((_Repeated(_One(_any), 0, None), _One(_literal(".")))), 0, 1)
        self._tests: list[Test | None] = []
        self._edges: list[bool | None] = []  # None: no edge
        self._next: list[list[int]] = []
        self._last = self._state()
        first = self._add(_Sequence((before, _Parser(text).whole())), self._last)
        self._moves: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._first = self._closed([first], {False})
        self._first_of_none = self._closed([first], {False, True})

    @property
    def states(self) -> int:
        """How large it is."""
        return len(self._tests)

    def matches(self, name: str) -> bool:
        """Whether it means the module of this name."""
        if not name:
            return self._last in self._first_of_none
        states = self._first
        for character in name:
            after = self._moves.get((states, character))
            if after is None:
                after = self._moves[states, character] = self._after(states, character)
            states = after
        return self._last in self._closed(states, {True})

    def _after(self, states: frozenset[int], character: str) -> frozenset[int]:
        reached = []
        for state in states:
            test = self._tests[state]
            if test is not None and test(character):
                reached += self._next[state]
        return self._closed(reached, set())

    def _closed(self, states: Iterable[int], passable: set[bool]) -> frozenset[int]:
        """What is reached without a character; of edges those that are `passable`."""
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state not in found:
                found.add(state)
                edge = self._edges[state]
                if self._tests[state] is None and (edge is None or edge in passable):
                    waiting += self._next[state]
        return frozenset(found)

    def _state(self, test: Test | None = None, after: Sequence[int] = (), edge: bool | None = None) -> int:
        if len(self._tests) == MOST_STATES:
            raise ValueError("repeats too much")
        self._tests.append(test)
        self._edges.append(edge)
        self._next.append(list(after))
        return len(self._tests) - 1

    def _add(self, node: _Node, after: int) -> int:
        """The state from which `node` leads to `after`."""
        if isinstance(node, _One):
            return self._state(node.test, [after])
        if isinstance(node, _Edge):
            return self._state(None, [after], node.end)
        if isinstance(node, _Choice):
            return self._state(None, [self._add(part, after) for part in node.parts])
        if isinstance(node, _Sequence):
            for part in reversed(node.parts):
                after = self._add(part, after)
            return after
        return self._repeat(node, after)

    def _repeat(self, node: _Repeated, after: int) -> int:
        at = after
        if node.most is None:
            at = self._state(None, [after])
            self._next[at].append(self._add(node.part, at))
        for _ in range((node.most or node.least) - node.least):
            at = self._state(None, [self._add(node.part, at), after])
        for _ in range(node.least):
            at = self._add(node.part, at)
        return at


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise ValueError(f"has {len(text):,} characters; expected {LONGEST:,} at most")
        self._text = text
        self._at = 0

    def whole(self) -> _Node:
        node = self._choice(0)
        if self._at < len(self._text):
            raise self._fault()
        return node

    def _choice(self, depth: int) -> _Node:
        if depth > _DEEPEST:
            raise ValueError("nests too deep")
        parts = [self._sequence(depth)]
        while self._taken("|"):
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else _Choice(parts)

    def _sequence(self, depth: int) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._one(depth)))
        return _Sequence(parts)

    def _repeated(self, node: _Node) -> _Node:
        counts = _COUNTS.match(self._text, self._at)
        if counts:
            self._at = counts.end()
            least = int(counts[1])
            most = (int(counts[3]) if counts[3] else None) if counts[2] else least
        elif self._at < len(self._text) and self._text[self._at] in "*+?":
            sign = self._text[self._at]
            self._at += 1
            least, most = int(sign == "+"), 1 if sign == "?" else None
        else:
            return node
        if isinstance(node, _Edge) or (most is not None and most < least):
            raise self._fault()
        self._taken("?")  # whether it prefers few makes no difference to a whole name
        if self._text.startswith(("*", "+", "?"), self._at):  # possessive, or none
            raise self._fault()
        return _Repeated(node, least, most)

    def _one(self, depth: int) -> _Node:
        character = self._text[self._at]
        found = _CLASS.match(self._text, self._at) if character == "[" else _KINDS.match(self._text, self._at)
        if found:
            self._at = found.end()
            return _One(self._class(found[0]))
        self._at += 1
        if character in "^$":
            return _Edge(end=character == "$")
        if character == "(":
            if self._taken("?") and not self._taken(":"):
                raise self._fault()
            node = self._choice(depth + 1)
            if not self._taken(")"):
                raise self._fault()
            return node
        if character in "*+?[{":
            raise self._fault()
        if character == "\\":
            character = self._text[self._at : self._at + 1]
            if not character or character.isalnum():
                raise self._fault()
            self._at += 1
            return _One(_literal(character))
        return _One(_any if character == "." else _literal(character))

    def _class(self, text: str) -> Test:
        if _DOUBTFUL.search(text):
            raise self._fault()
        try:
            return re.compile(text).fullmatch
        except re.error:
            raise self._fault() from None

    def _taken(self, character: str) -> bool:
        taken = self._text.startswith(character, self._at)
        self._at += taken
        return taken

    def _fault(self) -> ValueError:
        return ValueError(f"is no pattern of names that is understood here; {_EXPECTED}")


def _any(character: str) -> bool:
    return character != "\n"


def _literal(expected: str) -> Test:
    return lambda character: character == expected
