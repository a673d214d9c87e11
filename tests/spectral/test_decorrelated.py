from __future__ import annotations

import torch
from torch import Tensor

from surgery.spectral.decorrelated import decorrelated
from surgery.spectral.triplets import Triplets
from tests.strategies import orthonormal

GENERATOR = torch.Generator().manual_seed(0)


def part(k: int, rows: int = 30, cols: int = 20) -> Triplets:
    S = torch.arange(k, 0, -1, dtype=torch.float64)
    return Triplets(orthonormal(GENERATOR, rows, k).float(), S, orthonormal(GENERATOR, cols, k).float())


def nearest(*parts: Tensor) -> Tensor:
    """P Q^T of the SVD, in float64."""
    P, _, Qh = torch.linalg.svd(torch.cat(parts, 1).double(), full_matrices=False)
    return P @ Qh


def test_the_nearest_orthonormal_factors():
    """Those of the singular value decomposition of all vectors side by side, orthonormal to float32."""
    parts = [part(6), part(5), part(7)]
    found = decorrelated(parts)
    for X, expected in (
        (found.U, nearest(*(each.U for each in parts))),
        (found.V, nearest(*(each.V for each in parts))),
    ):
        assert (X - expected).abs().max() < 1e-6
        assert (X.mT.double() @ X.double() - torch.eye(18)).abs().max() < 1e-5
    assert torch.equal(found.S, torch.cat([each.S for each in parts]))


def test_one_part_alone_is_the_result():
    """Bit by bit; parts without triplets do not count."""
    only, nothing = part(6), part(3).leading(0)
    assert decorrelated([only]) is only
    assert decorrelated([nothing, only, nothing]) is only
    assert len(decorrelated([nothing, nothing]).S) == 0


def test_dependent_vectors_span_no_more():
    """Equal parts share their directions evenly: nothing outside of their span comes in."""
    one = part(6)
    found = decorrelated([one, one])
    assert torch.allclose(found.U, torch.cat([one.U, one.U], 1) / 2**0.5, atol=1e-6)
    assert torch.allclose(found.times(found.S) @ found.V.mT, one.times(one.S) @ one.V.mT, atol=1e-5)


def test_nearly_dependent_vectors_become_orthonormal():
    """Whatever the angle, down to where float32 vectors are not known any more."""
    one = part(6)
    for angle in (1e-1, 1e-2, 1e-3):
        other = orthonormal(GENERATOR, 30, 6)
        U = torch.linalg.qr(one.U.double() + angle * other).Q
        V = torch.linalg.qr(one.V.double() + angle * orthonormal(GENERATOR, 20, 6)).Q
        found = decorrelated([one, Triplets(U.float(), one.S, V.float())])
        assert (found.U.mT.double() @ found.U.double() - torch.eye(12)).abs().max() < 1e-5
