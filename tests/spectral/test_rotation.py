from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from surgery.spectral.rotation import restore_rotated
from surgery.spectral.triplets import Triplets, outer_triplets
from tests.strategies import normal, orthonormal, tuned, weight


def direct_rotation(A: Tensor, B: Tensor) -> Tensor:
    """The n x n direct rotation of span(A) onto span(B) from its definition: a turn in every principal plane."""
    P, cosines, Qh = torch.linalg.svd(A.mT @ B)
    rotation = torch.eye(A.shape[0], dtype=torch.float64)
    for a, b, c in zip((A @ P).mT, (B @ Qh.mT).mT, cosines.clamp(-1, 1), strict=True):
        w = b - c * a
        s = float(w.norm())
        if s > 1e-9:
            w = w / s
            theta = math.atan2(s, float(c))
            plane, turn = torch.outer(a, a) + torch.outer(w, w), torch.outer(w, a) - torch.outer(a, w)
            rotation += (math.cos(theta) - 1) * plane + math.sin(theta) * turn
    return rotation


def rotated_by_definition(W: Tensor, b: Tensor, outer: list[int]) -> Tensor:
    """W' = restored part + Q_U (W - replaced part) Q_V^T in float64, from full SVDs and explicit rotations."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    Ub, _, Vbh = torch.linalg.svd(b.double(), full_matrices=False)
    A, A_right, B, B_right = U[:, outer], Vh[outer].mT, Ub[:, outer], Vbh[outer].mT
    rest = W.double() - (A * S[outer]) @ A_right.mT
    restored = (B * S[outer]) @ B_right.mT
    return restored + direct_rotation(A, B) @ rest @ direct_rotation(A_right, B_right).mT


@pytest.mark.parametrize("shape", [(70, 50), (50, 70), (60, 60)])
@pytest.mark.parametrize(("head", "tail"), [(10, 0), (0, 6), (12, 5), (40, 0)])
@pytest.mark.parametrize("change", [0.01, 0.5, 3.0])
def test_rotation_is_that_of_davis_and_kahan(shape: tuple[int, int], head: int, tail: int, change: float):
    """The compact formula equals rest turned by plane rotations in the principal planes."""
    generator = torch.Generator().manual_seed(1)
    b = weight(generator, "decaying", *shape)
    W = tuned(generator, b, change)
    n = min(shape)
    replaced, restored = outer_triplets(W, head, tail), outer_triplets(b, head, tail)
    expected = rotated_by_definition(W, b, [*range(head), *range(n - tail, n)])
    found = restore_rotated(W, replaced, restored, replaced.S)
    assert (found - expected).norm() < 1e-10 * expected.norm()


def test_rotation_in_float32_is_float32_accurate():
    """In float32 the result is within float32's accuracy of the definition in float64."""
    generator = torch.Generator().manual_seed(2)
    b = weight(generator, "decaying", 300, 200).float()
    W = tuned(generator, b.double(), 0.5).float()
    replaced, restored = outer_triplets(W, 40), outer_triplets(b, 40)
    expected = rotated_by_definition(W, b, list(range(40)))
    assert (restore_rotated(W, replaced, restored, replaced.S) - expected).norm() < 4e-6 * expected.norm()


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-5, math.pi / 2 - 1e-12, math.pi / 2])
def test_singular_values_survive_extreme_angles(angle: float):
    """At angles of 0 and 90 degrees, and next to them, the result has exactly the values that were set."""
    generator = torch.Generator().manual_seed(3)
    U, V = orthonormal(generator, 30, 20), orthonormal(generator, 24, 20)
    S = torch.linspace(3, 1, 20, dtype=torch.float64)

    def turned(X: Tensor) -> Tensor:
        others = torch.linalg.qr(torch.cat([X, normal(generator, len(X), 3)], 1))[0][:, -3:]
        return math.cos(angle) * X[:, :3] + math.sin(angle) * others

    W = (U * S) @ V.mT
    replaced = Triplets(U[:, :3], S[:3], V[:, :3])
    restored = Triplets(turned(U), S[:3], turned(V))
    found = restore_rotated(W, replaced, restored, torch.tensor([9.0, 8.0, 7.0], dtype=torch.float64))
    values = torch.linalg.svdvals(found)[:20]
    expected = torch.cat([torch.tensor([9.0, 8.0, 7.0], dtype=torch.float64), S[3:]])
    assert torch.allclose(values, expected, rtol=1e-12)


def test_equal_subspaces_leave_the_matrix_alone():
    """Restoring a matrix's own triplets gives it back."""
    W = weight(torch.Generator().manual_seed(4), "decaying", 40, 30)
    own = outer_triplets(W, 8)
    assert (restore_rotated(W, own, own, own.S) - W).norm() < 1e-13 * W.norm()
