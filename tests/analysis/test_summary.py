"""A comparison in short."""

from __future__ import annotations

import json
import math

import pytest

from surgery.analysis.summary import most_rotated, summary
from tests.analysis.comparisons import comparison


def test_the_summary_is_plain_data() -> None:
    """It is JSON without NaN: what is not known is null."""
    found = json.loads(json.dumps(summary(comparison(quick=True)), allow_nan=False))
    assert found["pairs"]["base>sft"]["matrices"] == 30
    assert found["pairs"]["base>sft"]["moved_back"] is None
    assert found["pairs"]["base>sft"]["gauge_chance"] == 0.05


def test_frozen_matrices_are_no_part_of_medians() -> None:
    """Most are equal; the medians are those of the others. How many there are is told."""
    names = list(comparison().matrices["matrix"])
    data = comparison(equal=names[:20])
    found = summary(data)["pairs"]["base>sft"]  # type: ignore[index]
    moved = data.matrices[20:]
    assert (found["matrices"], found["equal"]) == (30, 20)
    assert found["rotation_degrees_median"] == pytest.approx(math.degrees(moved["rotation"].median()))
    assert found["off_diagonal_share_median"] == pytest.approx(1 - moved["diagonal_share"].median())
    for column in ("relative_change", "values_change"):
        assert found[f"{column}_median"] == pytest.approx(moved[column].median())
    assert found["cos_median"] == pytest.approx(moved["cos_left"].median())


def test_all_equal() -> None:
    """No median of nothing."""
    data = comparison()
    found = summary(comparison(equal=list(data.matrices["matrix"])))["pairs"]["base>sft"]  # type: ignore[index]
    assert found["equal"] == 30
    assert found["rotation_degrees_median"] is None


def test_most_rotated_are_the_largest() -> None:
    """In order, of the pair asked for."""
    found = comparison(("base", "sft", "rl"))
    table = most_rotated(found, ("base", "rl"), 5)
    rows = found.matrices[(found.matrices.before == "base") & (found.matrices.after == "rl")]
    assert list(table.rotation) == sorted(rows.rotation, reverse=True)[:5]
