"""Pages that need no other file and no network: a template's text, and pictures as addresses that hold them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.errors import NotInstalledError

# What would end a block of data or begin another tag, and what older JavaScript takes for the end of a line.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&'\u2028\u2029"}
_KINDS = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"<?xml", "image/svg+xml"), (b"<svg", "image/svg+xml"))


def need_jinja() -> None:
    """Raise NotInstalledError where no page could be written; to be asked before the work rather than after it."""
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            f"a report needs `{error.name}`, which is not installed: pip install 'surgery[diff]'", name=error.name
        ) from error


def render(template: Path, variables: Mapping[str, Any]) -> bytes:
    """The page of a template that extends `page.html.j2`, UTF-8.

    All texts are escaped, and nothing but the template's own scripts can run: each carries `nonce`, a digest of
    the page. The same variables give the same bytes. Raises NotInstalledError without Jinja.
    """
    need_jinja()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = ""
    for _ in range(2):  # the first page's digest is what scripts of the second carry
        nonce = hashlib.sha256(page.encode("utf-8", "replace")).hexdigest()[:32]
        page = environment.get_template(template.name).render({**variables, "nonce": nonce})
    return page.encode("utf-8", "replace")  # a path that is not UTF-8 has question marks in the page


def script_data(data: Any) -> str:
    """Plain data as JSON that may stand in a script element, whatever texts it holds."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def address(picture: bytes) -> str:
    """A PNG or SVG as an address that holds its content; as an image, so that nothing in an SVG can run.

    Raises ValueError for anything else.
    """
    kind = next((kind for start, kind in _KINDS if picture.startswith(start)), None)
    if kind is None:
        raise ValueError("the picture is neither PNG nor SVG")
    if kind == "image/png":
        kind, picture = "image/webp", _as_webp(picture)
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"


def _as_webp(png: bytes) -> bytes:
    """The same picture without loss: over the twelve figures of a comparison 43 % of the bytes."""
    from PIL import Image  # which matplotlib writes PNG with

    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(small, "WEBP", lossless=True, quality=60)  # more takes ten times as long for a tenth
    return small.getvalue()
