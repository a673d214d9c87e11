"""The report of a comparison: one HTML page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from surgery.analysis.captions import CAPTIONS, PAPER, Caption
from surgery.analysis.comparison import Comparison
from surgery.analysis.headline import cards, top, verdict
from surgery.analysis.measures import BELOW, LEAST_ANGLE, MEASURES, legible
from surgery.analysis.report_data import page_data
from surgery.page import address, render, script_data

TEMPLATE = Path(__file__).with_name("report.html.j2")


class AdviceLike(Protocol):
    """What a comparison suggests to try: words, and commands to copy."""

    @property
    def text(self) -> str:
        """What to do, and why."""

    @property
    def commands(self) -> tuple[str, ...]:
        """Command lines, each to be copied as it is."""


def make_report(
    comparison: Comparison,
    advice: Sequence[AdviceLike],
    figures: Mapping[str, bytes],
    versions: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """The page, UTF-8: verdict, headline numbers, advice, an interactive heat map, figures and definitions.

    `figures` are PNG or SVG by their names without endings; those that `captions` knows come in its order and with
    its words. `versions` are those of what the result may depend on. All names in the comparison are foreign: they are
    escaped in the HTML, escaped again in the block of data, and put into the page as text only. The same arguments
    give the same bytes. Raises NotInstalledError without Jinja, ValueError for other pictures.
    """
    return render(TEMPLATE, _content(comparison, advice, figures, versions))


def _content(
    comparison: Comparison, advice: Sequence[AdviceLike], figures: Mapping[str, bytes], versions: Mapping[str, str]
) -> dict[str, Any]:
    """The variables of the template."""
    data = page_data(comparison)
    title, columns, rows = top(comparison)
    known = {measure["key"] for measure in data["measures"]}
    return {
        "comparison": comparison,
        "models": {legible(name): legible(typed) for name, typed in comparison.models.items()},
        "verdict": verdict(comparison),
        "cards": cards(comparison),
        "advice": advice,
        "data": data,
        "json": script_data(data),
        "top": {"title": title, "columns": columns, "rows": rows},
        "figures": [_shown(name, figures[name]) for name in _ordered(figures)],
        "paper": PAPER,
        "least_angle": LEAST_ANGLE,
        "below": BELOW,
        "definitions": [measure for measure in MEASURES if measure.definition and measure.key in known],
        "versions": versions,
    }


def _ordered(figures: Mapping[str, bytes]) -> list[str]:
    """Those with a caption first, in the captions' order."""
    return [*(name for name in CAPTIONS if name in figures), *(name for name in figures if name not in CAPTIONS)]


def _shown(name: str, content: bytes) -> dict[str, Any]:
    """A figure with its caption. Raises ValueError for what is no picture."""
    try:
        shown = address(content)
    except ValueError as error:
        raise ValueError(f"the figure `{name}` is neither PNG nor SVG") from error
    return {"name": name, "address": shown, "caption": CAPTIONS.get(name, Caption(name, ""))}
