"""The versions of the packages that results depend on, and what was made under others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from surgery.wording import quoted

_PACKAGES = ("surgery", "torch", "transformers", "trl", "vllm")


@cache
def versions() -> Mapping[str, str]:
    """Those that are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def others(known: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A sentence for each set of other versions that stages were finished under; `known` has each stage's.

    A package that is there only now, or was there only then, counts for nothing.
    """
    stages: dict[str, list[str]] = {}
    for name, theirs in known.items():
        differ = [
            f"{package} {theirs[package]} (now {ours})"
            for package, ours in versions().items()
            if theirs.get(package, ours) != ours
        ]
        if differ:
            stages.setdefault(", ".join(differ), []).append(name)
    return [
        f"{quoted(names)} finished under {differ}, and stay as they are; remove their results to make them anew"
        for differ, names in stages.items()
    ]
