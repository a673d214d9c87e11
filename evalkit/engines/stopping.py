"""Texts that end an answer: looked for while it grows, cut off with whatever follows."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.rendering import Renderer


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stops, and whether there was one; an empty stop is none."""
    found = [position for word in stop if word and (position := text.find(word)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


def stopped(renderer: Renderer, answer: Sequence[int], new: int, stop: Sequence[str]) -> bool:
    """Whether one of the texts has come with the last `new` tokens.

    Only the end of the answer is decoded, twice as many tokens as a stop has bytes: all of it after each token would
    take the square of its length. A stop that hides from this among tokens without text is cut off at the end.
    """
    if not stop:
        return False
    tail = 2 * max(len(word.encode()) for word in stop) + 8 + new
    return cut(renderer.text(answer[-tail:]), stop)[1] and cut(renderer.text(answer), stop)[1]
