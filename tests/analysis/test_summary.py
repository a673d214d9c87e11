"""A comparison in short."""

from __future__ import annotations

import json

from surgery.analysis.summary import most_rotated, summary
from tests.analysis.comparisons import comparison


def test_the_summary_is_plain_data() -> None:
    """It is JSON without NaN: what is not known is null."""
    found = json.loads(json.dumps(summary(comparison(quick=True)), allow_nan=False))
    assert found["pairs"]["base>sft"]["matrices"] == 30
    assert found["pairs"]["base>sft"]["moved_back_mean"] is None


def test_most_rotated_are_the_largest() -> None:
    """In order, of the pair asked for."""
    found = comparison(("base", "sft", "rl"))
    table = most_rotated(found, ("base", "rl"), 5)
    rows = found.matrices[(found.matrices.before == "base") & (found.matrices.after == "rl")]
    assert list(table.rotation) == sorted(rows.rotation, reverse=True)[:5]
