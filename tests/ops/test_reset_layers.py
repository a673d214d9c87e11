from __future__ import annotations

import pytest
from pydantic import ValidationError

from surgery.ops.reset_layers import ResetLayers


def reset(**parameters: object) -> ResetLayers:
    return ResetLayers.model_validate({"op": "reset_layers", **parameters})


def test_reset_is_a_copy_of_one_role():
    """The executor copies bytes: the op reads its one source and ignores the running tensor."""
    op = reset(**{"from": "base", "select": {"layers": "first 25%"}})
    assert op.kind == "copy"
    assert op.reads == ("base",)
    assert not op.uses_result


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"from": "base"}, "select"),
        ({"from": "base", "select": None}, "select"),
        ({"from": "result", "select": {}}, "found `result`"),
    ],
)
def test_scope_and_source_must_be_given(parameters: dict[str, object], message: str):
    """Without `select` the whole model would be replaced; the running tensor is no source."""
    with pytest.raises(ValidationError, match=message):
        reset(**parameters)
