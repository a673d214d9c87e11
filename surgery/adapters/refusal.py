"""Why an adapter cannot be used, and what would help: each reason with its own remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.errors import CheckpointError

MERGE = "merge it with peft (`merge_and_unload`), or take another"
UNTIE = (
    "train it with `ensure_weight_tying` of peft, or merge it with peft (`merge_and_unload`), which gives the head a "
    "matrix of its own"
)
AGAIN = "save it again with peft, or fetch it again"
OTHER_BASE = "name the base that it was trained over, or take another adapter"
_MOST = 10  # reasons that are told


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason, and what to do about it; nothing where the reason says it."""

    text: str
    remedy: str = ""


def refused(source: str, reasons: Sequence[Refusal]) -> CheckpointError:
    """All reasons in one error, and their remedies, each once."""
    told = [reason.text for reason in reasons[:_MOST]]
    told += [f"{len(reasons) - _MOST:,} more"] if len(reasons) > _MOST else []
    told += dict.fromkeys(reason.remedy for reason in reasons if reason.remedy)
    return CheckpointError(f"`{source}` is an adapter that cannot be used: {'; '.join(told)}")
