"""How error messages quote what was found and suggest what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

SHOWN_CHARACTERS = 60  # of a wrong value: enough to recognise it, on one line
COMPARED = 50  # names looked through for a near miss; more do not occur, and comparing is slow
LISTED = 20  # names that a message lists
SOME = 3  # of thousands of things, those that a message shows


def show(value: object) -> str:
    """A wrong value as a message shows it: `20%`, `true`, nothing, a list, a map.

    Never long, and without control characters.
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Mapping):
        return "a map" if value else "an empty map"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, int) and abs(value) >= 10**SHOWN_CHARACTERS:
        return "an integer of too many digits"
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
    return f"`{text}`" if len(text) <= SHOWN_CHARACTERS else f"`{text[:SHOWN_CHARACTERS]}…`"


def quoted(names: Iterable[str]) -> str:
    """The names in backticks, separated by commas; a very long list is cut short."""
    names = list(names)
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(show(name) for name in names[:LISTED]) + rest


def some(texts: Sequence[str], noun: str = "token") -> str:
    """``3 tokens (`a`, `b`, `c`)``; of many, the first."""
    more = ", ..." if len(texts) > SOME else ""
    return f"{numbered(len(texts), noun)} ({quoted(texts[:SOME])}{more})"


def numbered(n: int, noun: str) -> str:
    """`1 variant`, `2,000 variants`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that a misspelt name most resembles (difflib ratio, letter case ignored), or None."""
    folded = {candidate.casefold(): candidate for candidate in islice(candidates, COMPARED)}
    close = difflib.get_close_matches(name[:200].casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def suggestion(name: str, candidates: Iterable[str], kind: str) -> str:
    """The end of a message about an unknown name: the nearest candidate, or else all of them."""
    candidates = list(candidates)
    near = did_you_mean(name, candidates)
    if near is not None:
        return f"did you mean `{near}`?"
    return f"{kind}: {quoted(candidates)}" if candidates else f"there are no {kind}"
