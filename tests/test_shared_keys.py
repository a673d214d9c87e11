"""Which layers take keys and values of others, once layers were dropped, repeated or put in another order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from surgery.shared_keys import sharing

KINDS = ["s", "s", "f", "s", "f", "s", "f"]
CONFIG = {"num_kv_shared_layers": 3, "layer_types": KINDS}  # 4, 5 and 6 take theirs from 2, 3 and 2


@pytest.mark.parametrize(
    ("layers", "count", "changed"),
    [
        (range(7), 3, 0),
        ([0, 1, 2, 3, 4, 6], 2, 0),
        ([0, 1, 2, 3], 0, 0),
        ([2, 3, 5, 4], 2, 0),
        ([0, 1, 2, 4, 5], 2, 1),
        ([0, 2, 4, 5], 2, 1),
        ([0, 1, 2, 3, 2, 4, 6], 2, 0),
    ],
)
def test_the_number_follows(layers: Sequence[int], count: int, changed: int) -> None:
    """It counts the layers that shared before; a remark counts those that now take keys of another layer."""
    found = sharing([(CONFIG, 7, layer) for layer in layers])
    assert (found.count, found.fault) == (count, None)
    assert (found.remark is None) == (changed == 0)
    assert changed == 0 or f"{changed} layer" in str(found.remark)


@pytest.mark.parametrize(
    ("layers", "message"),
    [([0, 1, 2, 4, 3], "comes before one that has some"), ([0, 1, 4], "no layer of the kind `f` is left")],
)
def test_what_no_number_says(layers: Sequence[int], message: str) -> None:
    """Layers that share in between, or without any whose keys they could take."""
    assert message in str(sharing([(CONFIG, 7, layer) for layer in layers]).fault)


def test_layers_of_two_models() -> None:
    """Each layer shares by the config that it comes from; without kinds, all are of one."""
    ours, theirs = {"num_kv_shared_layers": 1}, {"num_kv_shared_layers": 2}
    found = sharing([(ours, 3, 0), (ours, 3, 1), (theirs, 4, 2), (theirs, 4, 3)])
    assert found.count == 2
    assert "2 layers take" in str(found.remark)
    assert sharing([({"num_kv_shared_layers": 9}, 3, 0), ({}, 3, 1)]).count == 0
