from __future__ import annotations

import torch
from hypothesis import given, settings
from torch import Tensor

from surgery.ops.restore_directions import RestoreDirections
from surgery.ops.restore_values import RestoreValues
from surgery.ops.swap_directions import SwapDirections
from surgery.spectral.decomposer import Decomposer
from tests.strategies import pairs, tuned, weight

SWAP = SwapDirections.model_validate({"op": "swap_directions", "from": "sft"})
VALUES = RestoreValues.model_validate({"op": "restore_values", "from": "sft"})


def test_swap_is_the_other_models_vectors_with_own_values():
    """W' = U_from S V_from^T, and restore_values is the same with the parts exchanged."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((60, 40), (40, 60)):
        b = weight(generator, "decaying", *shape).float()
        W = tuned(generator, b.double(), 0.5).float()
        U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        Ub, Sb, Vbh = torch.linalg.svd(b.double(), full_matrices=False)
        swapped, restored = SWAP.apply(W, {"sft": b}, Decomposer()), VALUES.apply(W, {"sft": b}, Decomposer())
        assert (swapped - (Ub * S) @ Vbh).norm() < 2e-6 * W.norm()
        assert (restored - (U * Sb) @ Vh).norm() < 2e-6 * W.norm()


def test_swap_is_restoring_all_directions():
    """`restore_directions` with `head: all` is the same operation, bit by bit."""
    generator = torch.Generator().manual_seed(1)
    W, b = (weight(generator, "flat", 30, 20).float() for _ in range(2))
    op = RestoreDirections.model_validate({"op": "restore_directions", "from": "sft", "head": "all"})
    assert torch.equal(op.apply(W, {"sft": b}, Decomposer()), SWAP.apply(W, {"sft": b}, Decomposer()))


@settings(deadline=None, max_examples=40)
@given(pairs())
def test_values_come_from_one_and_vectors_from_the_other(pair: tuple[Tensor, Tensor]):
    """The result's values are W's for swap_directions, b's for restore_values; own parts give back the matrix."""
    W, b = pair
    for op, values in ((SWAP, W), (VALUES, b)):
        found = torch.linalg.svdvals(op.apply(W, {"sft": b}, Decomposer()).double())
        expected = torch.linalg.svdvals(values.double())
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected[0]) + 1e-30)
        assert (op.apply(W, {"sft": W.clone()}, Decomposer()) - W).norm() <= 1e-5 * W.norm()
