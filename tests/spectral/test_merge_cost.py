from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from surgery.ops import Step
from surgery.ops.whole import Piece, Whole
from surgery.spectral import cost
from surgery.spectral.decomposer import Decomposer
from tests.spectral.test_cost import peak
from tests.strategies import weight

ROLES = ("a", "b", "c", "d")
STEPS: list[dict[str, Any]] = [
    *(
        {"op": op, "base": "base", "models": models, **keys}
        for models in (ROLES[:2], ROLES)
        for op, keys in (
            ("tsv", {}),
            ("iso_c", {}),
            ("iso_cts", {"common": "40%"}),
            ("iso_cts", {"common": "80%"}),
            ("knots", {"density": 0.3}),
            ("knots", {"method": "dare_ties", "density": 0.3}),
            ("knots", {"method": "linear"}),
        )
    ),
    {"op": "suppress_intruders", "from": "base", "head": "30%"},
    {"op": "suppress_intruders", "from": "base", "head": "all", "threshold": 1},
    {"op": "truncate_rank", "rank": "marchenko_pastur"},
    {"op": "truncate_rank", "rank": "marchenko_pastur", "of": "base"},
    {"op": "truncate_rank", "rank": "10%", "of": "base"},
]
STEP: TypeAdapter[Any] = TypeAdapter(Step)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(map(str, step.values())))
@pytest.mark.parametrize(("shape", "kind"), [((256, 256), "steep"), ((128, 1000), "decaying"), ((1000, 128), "steep")])
def test_workspace_bounds_what_is_allocated(shape: tuple[int, int], kind: str, step: dict[str, Any]):
    """No merge has more in torch tensors at once than `workspace` says, which says no more than ten times as much."""
    op = STEP.validate_python(step)
    generator = torch.Generator().manual_seed(0)
    sources = {role: weight(generator, kind, *shape).float() for role in ("base", *ROLES)}
    piece = Piece(weight(generator, kind, *shape).float(), sources, 0, Decomposer())
    made: list[Tensor] = []

    def work() -> None:
        edit = op.prepare(Whole("x", shape, lambda: iter((piece,))))
        made.append(edit(piece))

    used = peak(work)
    small = 1 << 10  # single numbers
    assert used < op.workspace(shape) - cost.LIBRARY + small
    assert used > 0.1 * (op.workspace(shape) - cost.LIBRARY)
    assert op.flops(shape) > 0
