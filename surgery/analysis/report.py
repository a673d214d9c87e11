"""The report of a comparison: one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from surgery.analysis.captions import CAPTIONS, PAPER, Caption
from surgery.analysis.comparison import Comparison
from surgery.analysis.headline import cards, top, verdict
from surgery.analysis.measures import BELOW, LEAST_ANGLE, MEASURES, legible
from surgery.analysis.report_data import page_data
from surgery.errors import NotInstalledError

TEMPLATE = "report.html.j2"
# What would end the block of data or begin another tag, and what older JavaScript takes for the end of a line.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&'\u2028\u2029"}
_KINDS = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"<?xml", "image/svg+xml"), (b"<svg", "image/svg+xml"))


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
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            f"a report needs `{error.name}`, which is not installed: pip install 'surgery[diff]'", name=error.name
        ) from error
    from pathlib import Path

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(_content(comparison, advice, figures, versions))
    return page.encode("utf-8", "replace")  # a path that is not UTF-8 has question marks in the page


def _content(
    comparison: Comparison, advice: Sequence[AdviceLike], figures: Mapping[str, bytes], versions: Mapping[str, str]
) -> dict[str, Any]:
    """The variables of the template."""
    data = page_data(comparison)
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)
    title, columns, rows = top(comparison)
    known = {measure["key"] for measure in data["measures"]}
    return {
        "comparison": comparison,
        "models": {legible(name): legible(typed) for name, typed in comparison.models.items()},
        "verdict": verdict(comparison),
        "cards": cards(comparison),
        "advice": advice,
        "data": data,
        "json": text,
        "nonce": hashlib.sha256(text.encode()).hexdigest()[:32],
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
    """A figure as an address that holds its content; as an image, so that nothing in an SVG can run."""
    kind = next((kind for start, kind in _KINDS if content.startswith(start)), None)
    if kind is None:
        raise ValueError(f"the figure `{name}` is neither PNG nor SVG")
    if kind == "image/png":
        kind, content = "image/webp", _as_webp(content)
    address = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"name": name, "address": address, "caption": CAPTIONS.get(name, Caption(name, ""))}


def _as_webp(png: bytes) -> bytes:
    """The same picture without loss: over the twelve figures of a comparison 43 % of the bytes."""
    from PIL import Image  # which matplotlib writes PNG with

    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(small, "WEBP", lossless=True, quality=60)  # more takes ten times as long for a tenth
    return small.getvalue()
