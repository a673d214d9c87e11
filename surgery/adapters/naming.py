"""`MODEL+ADAPTER`: where one name ends and the next begins."""

from __future__ import annotations

import os


def split_source(source: str) -> list[str]:
    """The model and its adapters, of `MODEL`, `MODEL+ADAPTER` or `MODEL+ADAPTER+ADAPTER`.

    A path may hold `+` itself: the longest beginning that exists is one name. Otherwise a name ends at the first `+`.
    """
    words = source.split("+")
    for count in range(len(words), 0, -1):
        name = "+".join(words[:count])
        if count == 1 or _exists(name):
            rest = "+".join(words[count:])
            return [name, *split_source(rest)] if count < len(words) else [name]
    return [source]


def _exists(path: str) -> bool:
    return "\0" not in path and os.path.lexists(os.path.expanduser(path))  # noqa: PTH111 - it may begin with any `~`
