"""The answer names one of several choices, by its letter or by its text.

A letter counts where it cannot be an English word: alone, in brackets or bold, before a point or a bracket at the start
of a line, or after "answer is", "option" and the like. "A" and "I" before a word are the article and the pronoun. Of a
long answer only the end counts.
"""

from __future__ import annotations

import re
import string
from collections import deque
from collections.abc import Iterator, Sequence

from evalkit.graders.verdict import SEARCHED, right, unparsable, wrong
from evalkit.task import Grade

LETTERS = string.ascii_uppercase
MAX_CHOICES = len(LETTERS)
MARKS = 16  # the last ones: an answer that concludes more often is a repetition or an attack

_AROUND = " \t\r\n*_`'\"()[]{}<>.,:;!$"  # what may surround an answer that is a letter alone
# A conclusion: what follows is meant as the answer.
_MARK = re.compile(
    r"\\boxed\{|^\s{0,3}####|answer(?:\s{1,3}is|\*{0,2}\s{0,3}[:=])|correct\s(?:option|choice|letter)(?:\s{1,3}is|:)",
    re.IGNORECASE | re.MULTILINE,
)
_FILLER = re.compile(
    r"(?:[^0-9A-Za-z(]{0,20}(?:\\text\{|\\mathrm\{|\\textbf\{|(?:definitely|clearly|therefore|option|choice|letter)\b))?"
    r"[^0-9A-Za-z(]{0,20}",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"\(\s?(?P<bracketed>[A-Za-z])\s?\)"
    r"|(?:(?P<bare>[A-Za-z])(?=[.:;,/)\]}*_`\"!?$—–]|\s*\Z|\s*\n)|(?P<word>[A-Z])(?=\s+(?P<next>\S+)))(?!\.[A-Za-z])"
)
# Elsewhere: a letter that is set off like one of the choices.
_MENTION = re.compile(
    r"(?<![A-Za-z0-9])\(\s?(?P<bracketed>[A-Z])\s?\)"
    r"|\*\*\(?(?P<bold>[A-Z])[).:]?\*\*"
    r"|^[\s*_>#-]{0,8}(?P<first>[A-Z])(?:[.):]|\*\*|\s*$)"
    r"|\b(?:option|choice|letter)\s{1,3}\(?(?P<named>[A-Z])\b"
    r"|\b(?:is|choose|pick|select)\s{1,3}(?P<last>[A-Z])[.!]?\s*$",
    re.MULTILINE,
)
# After "the answer is A": words that continue a sentence about the letter, not a noun that "A" is the article of.
_GOES_ON = frozenset({"as", "because", "but", "due", "for", "is", "since", "so", "which", "with"})
_MORE = re.compile(r"\s*(?:[,/&]|or\b|and\b)\s*\(?(?P<letter>[A-Z])\b")  # "A or C": no conclusion
_WORDS = frozenset("AI")
_BREAK = re.compile(r"\W")
_NEGATION = re.compile(r"\b(?:not|never|except|neither|nor|incorrect|wrong)\b|n['’]t\b", re.IGNORECASE)
_SIGNS = ("+", "-", "\u2212", "/", "*", "^")  # before a digit they belong to its number
_OPERATORS = ("/", "*", "^", "%")
_GROUPED = re.compile(r"[.,:][0-9]")  # the point of a number, and the digit on its other side


def fault(reference: str, choices: Sequence[str]) -> str | None:
    """What is wrong with a reference, or None: it has to be the letter or the text of one choice."""
    readings = _readings(reference, choices)
    if len(readings) == 1:
        return None
    if readings:
        return "is the letter of one choice and the text of another; give the letter and change that text"
    last = LETTERS[len(choices) - 1]
    return f"is none of the choices; give a letter from A to {last}, or the text of a choice"


def listed(choices: Sequence[str]) -> str:
    """The choices as they are shown to the model: a letter and a text on a line each."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def letter(reference: str, choices: Sequence[str]) -> str:
    """The letter of the choice that a reference, known to be without fault, means."""
    (index,) = _readings(reference, choices)
    return LETTERS[index]


def grade(answer: str, references: Sequence[str], choices: Sequence[str]) -> Grade:
    """Right if the answer names the choice that the first reference means; its value is the letter.

    An answer that names none, or several without a conclusion, is unparsable.
    """
    named = _named(answer[-SEARCHED:], choices)
    if len(named) != 1:
        what = "names several choices" if named else f"names none of the choices A to {LETTERS[len(choices) - 1]}"
        return unparsable(f"The answer {what}.")
    found = LETTERS[named.pop()]
    return right(found) if found == letter(references[0], choices) else wrong(found)


def _readings(reference: str, choices: Sequence[str]) -> set[int]:
    """The choices that a reference may mean."""
    text = _plain(reference)
    by_letter = {LETTERS.index(text)} if len(text) == 1 and text in LETTERS[: len(choices)] else set()
    return by_letter | {i for i, choice in enumerate(choices) if _plain(choice) == text}


def _named(answer: str, choices: Sequence[str]) -> set[int]:
    """The choices that the answer names, by the most telling sign that it gives."""
    plain = [_plain(choice) for choice in choices]
    folded = [choice.casefold() for choice in plain]
    alone = _whole(answer, plain, folded)
    if alone is not None:
        return {alone}
    for mark in reversed(deque(_MARK.finditer(answer), maxlen=MARKS)):
        concluded = _concluded(answer, mark.end(), folded)
        if concluded is not None:
            return {concluded}
    mentions = [(i, start) for i, start in _mentions(answer) if i < len(choices)]
    named = {i for i, _ in mentions}
    if len(named) > 1 and not answer[: mentions[0][1]].strip(_AROUND):
        opening = mentions[0][0]  # "B. Paris", and then why not the others
        rest = answer[mentions[0][1] + 1 :].lstrip(_AROUND)
        return {opening} if _begins(_folded(rest), folded[opening]) else named
    return named or _texts(answer, folded)


def _whole(answer: str, plain: Sequence[str], folded: Sequence[str]) -> int | None:
    """The choice whose letter or text the whole answer is."""
    text, bare = _plain(answer), answer.strip(_AROUND).upper()
    if text and plain.count(text) == 1:
        return plain.index(text)
    if len(bare) == 1 and bare in LETTERS[: len(plain)]:
        return LETTERS.index(bare)
    text = text.casefold()
    return folded.index(text) if text and folded.count(text) == 1 else None


def _concluded(answer: str, start: int, folded: Sequence[str]) -> int | None:
    """The choice that stands right after a mark."""
    filler = _FILLER.match(answer, start)
    assert filler is not None  # it may be empty
    rest = answer[filler.end() : filler.end() + max(map(len, folded)) + 100]
    found = _LETTER.match(rest)
    if found is not None:
        index = LETTERS.index((found["bracketed"] or found["bare"] or found["word"]).upper())
        more = _MORE.match(rest, found.end())
        if index < len(folded) and (more is None or LETTERS.index(more["letter"]) >= len(folded)):
            following = (found["next"] or "").strip(_AROUND).lower()
            article = found["word"] in _WORDS and following not in _GOES_ON
            if not article or _begins(_folded(rest[found.end() :].lstrip(_AROUND)), folded[index]):
                return index
    if answer[filler.end() - 1 : filler.end()] in _SIGNS and rest[:1].isdecimal():
        return None  # of a negative number
    text = _folded(rest)
    begun = [i for i, choice in enumerate(folded) if _begins(text, choice)]
    return max(begun, key=lambda i: len(folded[i]), default=None)


def _mentions(answer: str) -> Iterator[tuple[int, int]]:
    """Letters that are set off, with their positions."""
    for found in _MENTION.finditer(answer):
        group = found.lastgroup
        assert group is not None
        yield LETTERS.index(found[group]), found.start(group)


def _texts(answer: str, folded: Sequence[str]) -> set[int]:
    """The choices whose texts occur in the answer; a text within a longer one does not count, nor does a denial."""
    if _NEGATION.search(answer):
        return set()
    rest = _folded(answer)
    found = set()
    for i in sorted(range(len(folded)), key=lambda i: -len(folded[i])):
        less = _without(rest, folded[i]) if folded[i] else rest
        if less != rest:
            found.add(i)
            rest = less
    return found


def _without(text: str, words: str) -> str:
    """The text with line breaks in place of all words that are these; parts of words do not count.

    By hand: a regular expression would take the square of the length for `aaaa...`.
    """
    pieces, done, start = [], 0, text.find(words)
    while start >= 0:
        end = start + len(words)
        alone = (end == len(text) or _BREAK.match(text, end)) and (start == 0 or _BREAK.match(text, start - 1))
        if alone and not _within_number(text, start, end):
            pieces.append(text[done:start])
            done = following = end
        else:
            broken = _BREAK.search(text, start)
            following = broken.end() if broken else len(text)
        start = text.find(words, following)
    return "\n".join([*pieces, text[done:]])


def _begins(text: str, choice: str) -> bool:
    """Whether a folded text begins with a choice's, and no word goes on after it."""
    end = len(choice)
    begins = bool(choice) and text.startswith(choice) and not text[end : end + 1].isalnum()
    return begins and not _within_number(text, 0, end)


def _within_number(text: str, start: int, end: int) -> bool:
    """Whether a choice that is a number goes on beyond these ends: `2` is none of `-2`, `4/2`, `2.5` and `1,2`."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    first = text[start : start + 1].isdecimal() and (before[-1:] in _SIGNS or bool(_GROUPED.match(before[::-1])))
    last = text[end - 1 : end].isdecimal() and (after[:1] in _OPERATORS or bool(_GROUPED.match(after)))
    return bool(first or last)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
