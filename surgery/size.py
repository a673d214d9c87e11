"""Sizes in bytes as people write them: `5GB`, `500 MiB`."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?I?B)", re.ASCII | re.IGNORECASE)


def parse_size(text: object) -> int:
    """Bytes in `5GB` (decimal) or `5GiB` (binary). Raises ValueError for anything else, and for less than a byte."""
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    nbytes = int(Fraction(match[1]) * _UNITS[match[2].upper()]) if match and match[2].upper() in _UNITS else 0
    if nbytes < 1:
        raise ValueError(f"found `{text}`; expected a size with its unit, such as `5GB` or `500MiB`")
    return nbytes


def show_size(nbytes: int) -> str:
    """Three digits and a decimal unit: `2.47 GB`."""
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{nbytes} B" if unit == "B" else f"{value:.3g} {unit}"
