"""What the names of models become: roles of a recipe, and what `surgery` calls the models."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from surgery.hub import parse_hub_id
from surgery.ops.base import RESULT

LONGEST = 40  # characters; longer names make recipes hard to read


def roles(models: Sequence[str]) -> list[str]:
    """A role for each of these paths or hub ids, in order: the last part of its name, or of its adapter's.

    Where two are alike the part before it is added; where that does not tell them apart, a number.
    """
    found = [_role(model, 1) for model in models]
    for parts in (2, 3):
        alike = {role for role, count in Counter(found).items() if count > 1}
        found = [_role(model, parts) if role in alike else role for model, role in zip(models, found, strict=True)]
    taken: list[str] = [RESULT]
    for role in found:
        numbers = (f"{role}-{number}" for number in range(2, len(models) + 3))
        taken.append(role if role not in taken else next(name for name in numbers if name not in taken))
    return taken[1:]


def _role(model: str, parts: int) -> str:
    path = model.rpartition("+")[2].partition("@")[0]
    kept = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..", "~")][-parts:]
    text = re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(kept)).strip("-")[:LONGEST].rstrip("-")
    return text if text[:1].isalpha() else f"model-{text}".rstrip("-")


def located(model: str) -> str:
    """A model's name as `surgery` takes it: `gpt2` is `gpt2@main`, the hub's, unless there is such a path here.

    mergekit looks on the hub for whatever is no path; a single word is otherwise taken for a mistyped one.
    """
    return "+".join(map(_located, model.split("+")))


def _located(part: str) -> str:
    of_hub = f"{part}@main"
    is_word = "/" not in part and not os.path.lexists(part) and parse_hub_id(of_hub) is not None
    return of_hub if is_word else part
