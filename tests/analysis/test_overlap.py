from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from scipy.linalg import subspace_angles
from torch import Tensor

from surgery.analysis.comparison import RESOLUTION
from surgery.analysis.overlap import Overlap, overlap, principal_angles
from surgery.spectral.svd import LinAlgError
from surgery.spectral.triplets import outer_triplets
from tests.strategies import normal, orthonormal, pairs, tuned, weight


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scipys(A: Tensor, B: Tensor) -> Tensor:
    """SciPy's principal angles, ascending. Where some are above 45 degrees it takes some small ones from their cosines
    (its mask is in the order of the cosines, not of the angles): it is off by up to 3e-8 there.
    """
    return torch.from_numpy(subspace_angles(A.double().numpy(), B.double().numpy())).flip(0)


def reference(A: Tensor, B: Tensor) -> Tensor:
    """Principal angles, ascending: below 45 degrees from the distance of B's principal vectors to span(A)."""
    A, B = torch.linalg.qr(A.double())[0], torch.linalg.qr(B.double())[0]
    sines = torch.linalg.svdvals(B - A @ (A.mT @ B)).flip(0)
    cosines = torch.linalg.svdvals(A.mT @ B)
    return torch.where(sines < 0.7, torch.asin(sines.clamp_max(1)), torch.acos(cosines.clamp_max(1)))


def turned(basis: Tensor, angles: Tensor) -> Tensor:
    """The leading columns a_i of a square orthonormal basis, turned by angles_i towards as many columns behind them."""
    r = len(angles)
    return basis[:, :r] * torch.cos(angles) + basis[:, r : 2 * r] * torch.sin(angles)


def mixed(generator: torch.Generator, A: Tensor) -> Tensor:
    """Another orthonormal basis of the same span."""
    return A @ orthonormal(generator, A.shape[1], A.shape[1])


@pytest.mark.parametrize(
    ("m", "known", "r"),
    [
        (40, 12, 12),
        (40, 12, 7),
        (40, 12, 1),
        (40, 40, 9),
        (40, 30, 25),
        (40, 39, 39),
        (3000, 10, 6),
        (5, 3, 3),
        (2, 1, 1),
        (1, 1, 1),
    ],
)
def test_angles_are_those_of_the_definition_and_of_scipy(m: int, known: int, r: int) -> None:
    """Random leading subspaces, of a few or of all dimensions, over several blocks of rows; ascending."""
    A, B = orthonormal(generator(), m, known), orthonormal(generator(1), m, known)
    both = overlap(A, B, known)
    found = both.angles(r)
    assert torch.allclose(found, reference(A[:, :r], B[:, :r]), rtol=0, atol=1e-13)
    assert torch.allclose(found, scipys(A[:, :r], B[:, :r]), rtol=0, atol=1e-7)
    assert found.dtype == torch.float64
    assert all(first <= second for first, second in pairwise(found.tolist()))
    assert torch.allclose(principal_angles(A[:, :r], B[:, :r]), found, rtol=0, atol=1e-14)


def test_sides_with_different_numbers_of_columns() -> None:
    """The two matrices need not have as many known directions; either may be complete."""
    A, B = orthonormal(generator(), 30, 30), orthonormal(generator(1), 30, 12)
    for first, second in ((A, B), (B, A)):
        both = overlap(first, second, 8)
        assert both.C.shape == (first.shape[1], second.shape[1])
        assert both.T.shape == (8, 8)
        assert torch.allclose(both.angles(8), reference(first[:, :8], second[:, :8]), rtol=0, atol=1e-13)


def test_triangular_factor_is_that_of_the_residual() -> None:
    """T^T T = R^T R for the part R of B outside span(A), T is triangular, and zero where A is complete."""
    A, B = orthonormal(generator(), 5000, 6), orthonormal(generator(1), 5000, 5)
    both = overlap(A, B, 4)
    R = B[:, :4] - A @ (A.mT @ B[:, :4])
    assert torch.allclose(both.T.mT @ both.T, R.mT @ R, rtol=0, atol=1e-13)
    assert torch.equal(both.T, both.T.triu())
    assert not overlap(orthonormal(generator(), 5, 5), B[:5, :3], 3).T.any()


@pytest.mark.parametrize("size", [1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("known", [8, 20, 50])
def test_near_subspaces_keep_their_digits(size: float, known: int) -> None:
    """Angles of 1e-9 to 1e-3 come out to 1e-14, where the arc cosine of the same cosines has none below 1e-8."""
    basis = orthonormal(generator(), 50, 50)
    angles = size * torch.linspace(0.1, 1, 8, dtype=torch.float64)
    A = torch.cat([mixed(generator(1), basis[:, :8]), basis[:, 16 : 8 + known], basis[:, 8:16]], 1)[:, :known]
    B = mixed(generator(2), turned(basis, angles))
    assert torch.allclose(overlap(A, B, 8).angles(8), angles, rtol=1e-12, atol=1e-14)
    assert torch.allclose(scipys(A[:, :8], B), angles, rtol=0, atol=1e-14)


@pytest.mark.parametrize("theta", [0.0, 1e-7, 1e-3, 0.3, math.pi / 4, 1.2, math.pi / 2 - 1e-9, math.pi / 2])
@pytest.mark.parametrize("known", [1, 4, 12])
def test_turn_in_one_plane_is_the_angle(theta: float, known: int) -> None:
    """One direction turned by theta, the others left: the largest angle is theta, the others 0."""
    basis = orthonormal(generator(), 12, 12)
    r = min(known, 4)
    A, B = basis[:, :known], basis[:, :r].clone()
    B[:, r - 1] = math.cos(theta) * basis[:, r - 1] + math.sin(theta) * basis[:, -1 if known < 12 else r]
    found = overlap(A, B, r).angles(r)
    assert abs(float(found[-1]) - theta) < 1e-14
    assert torch.allclose(found[:-1], torch.zeros(r - 1, dtype=torch.float64), rtol=0, atol=1e-14)


def test_angles_of_every_size_are_paired() -> None:
    """Angles at 0, on both sides of 45 degrees and at 90, at once: each sine meets its own cosine."""
    half = math.pi / 2
    angles = torch.tensor([0, 1e-9, 1e-4, 0.7, half / 2, 0.8, 1.5, half - 1e-9, half], dtype=torch.float64)
    basis = orthonormal(generator(), 30, 30)
    A, B = mixed(generator(1), basis[:, :9]), mixed(generator(2), turned(basis, angles))
    assert torch.allclose(principal_angles(A, B), angles, rtol=0, atol=1e-14)
    assert torch.allclose(principal_angles(A, B), scipys(A, B), rtol=0, atol=1e-7)


def test_orthogonal_subspaces_are_at_90_degrees() -> None:
    """Subspaces without a common part have angles of pi / 2, and neither matching nor intruding directions mix up."""
    basis = orthonormal(generator(), 30, 30)
    both = overlap(basis[:, :6], basis[:, 10:16], 6)
    assert torch.allclose(both.angles(6), torch.full((6,), math.pi / 2, dtype=torch.float64), rtol=0, atol=1e-14)
    assert float(both.best().max()) < 1e-14
    assert both.intruders(6) == 6


def test_equal_subspaces_are_at_0_whatever_their_bases() -> None:
    """Nested bases: where the leading subspaces agree all angles are 0, also where only larger ones do."""
    A = orthonormal(generator(), 30, 12)
    B = torch.cat([mixed(generator(1), A[:, :5]), mixed(generator(2), A[:, 5:])], 1)
    both = overlap(A, B, 12)
    for r in (5, 12):
        assert float(both.angles(r).max()) < 1e-14
    assert torch.allclose(both.angles(8), reference(A[:, :8], B[:, :8]), rtol=0, atol=1e-12)
    assert float(both.angles(8)[-1]) > 0.1


@pytest.mark.parametrize("m", [1, 3, 20])
def test_the_whole_space_is_at_exactly_0(m: int) -> None:
    """At r = m both subspaces are the space, in either precision."""
    for dtype in (torch.float32, torch.float64):
        A, B = orthonormal(generator(), m, m).to(dtype), orthonormal(generator(1), m, m).to(dtype)
        assert not principal_angles(A, B).any()


def test_nearly_the_whole_space_has_few_angles_that_are_not_0() -> None:
    """With m - h < r at most m - r angles are not 0."""
    A, B = orthonormal(generator(), 20, 17), orthonormal(generator(1), 20, 17)
    found = principal_angles(A, B)
    assert torch.allclose(found, reference(A, B), rtol=0, atol=1e-12)
    assert float(found[:14].max()) < 1e-14 < 0.01 < float(found[14])


def test_angles_are_symmetric() -> None:
    """Before and after exchanged give the same angles."""
    A, B = orthonormal(generator(), 40, 9), orthonormal(generator(1), 40, 9)
    assert torch.allclose(principal_angles(A, B), principal_angles(B, A), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaled_values_turn_nothing(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """A matrix with other singular values of the same order has the same directions on both sides."""
    W = weight(generator(), "decaying", *shape).to(dtype)
    n = min(shape)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    other = ((U * (3 * S + S**2)) @ Vh).to(dtype)
    r = max(1, n // 5)
    before, after = outer_triplets(W, n), outer_triplets(other, n)
    for A, B in ((before.U, after.U), (before.V, after.V)):
        both = overlap(A, B, r)
        assert float(both.angles(r).max()) < (1e-5 if dtype == torch.float32 else 1e-12)
        assert float(both.matching()[:r].min()) > 1 - 1e-5
        assert both.intruders(r) == 0


@pytest.mark.parametrize(("m", "r"), [(200, 40), (2500, 60)])
def test_float32_resolves_angles_down_to_its_resolution(m: int, r: int) -> None:
    """float32 bases of equal spaces are at less than RESOLUTION; larger angles are within it of those in float64."""
    A = orthonormal(generator(), m, r)
    assert float(principal_angles(A.float(), A.float()).max()) < RESOLUTION
    for size in (1e-5, 1e-3, 0.3, 10.0):
        B, _ = torch.linalg.qr(A + size * normal(generator(1), m, r) / m**0.5)
        found, expected = principal_angles(A.float(), B.float()), principal_angles(A, B)
        assert found.dtype == torch.float64
        assert torch.allclose(found, expected, rtol=0, atol=RESOLUTION)


@settings(deadline=None, max_examples=80)
@given(pairs())
def test_angles_of_any_pair(pair: tuple[Tensor, Tensor]) -> None:
    """Leading subspaces of small matrices, deficient ones and equal ones included; never NaN."""
    base, other = (outer_triplets(W, min(W.shape)) for W in pair)
    for A, B in ((base.U, other.U), (base.V, other.V)):
        both = overlap(A, B, A.shape[1])
        for r in {1, (A.shape[1] + 1) // 2, A.shape[1]}:
            for expected in (reference(A[:, :r], B[:, :r]), scipys(A[:, :r], B[:, :r])):
                assert torch.allclose(both.angles(r), expected, rtol=0, atol=2 * RESOLUTION)  # both bases are rounded
        assert torch.equal(both.best(), both.C.abs().amax(0).double().clamp_max(1))


def test_matching_and_best_by_hand() -> None:
    """|cos| on the diagonal, the largest in each column, signs ignored, never above 1; intruders are below 0.5."""
    C = torch.tensor([[1.0000001, 0.4, 0.6], [0.0, -0.3, -0.8]])
    both = Overlap(C, torch.zeros(2, 2))
    assert both.matching().tolist() == pytest.approx([1.0, 0.3])
    assert both.best().tolist() == pytest.approx([1.0, 0.4, 0.8])
    assert float(both.matching().max()) == float(both.best().max()) == 1.0
    assert [both.intruders(r) for r in (1, 2, 3)] == [0, 1, 1]
    assert both.intruders(3, threshold=0.9) == 2


def test_intruder_threshold_is_not_an_intruder() -> None:
    """A direction met with exactly the threshold is none."""
    assert Overlap(torch.tensor([[0.5]]), torch.zeros(1, 1)).intruders(1) == 0


def test_planted_intruder_is_found() -> None:
    """A strong new direction, orthogonal to all known ones, is the one intruder on each side."""
    W = weight(generator(), "decaying", 80, 60)
    u = torch.linalg.qr(torch.cat([outer_triplets(W, 20).U, normal(generator(1), 80, 1)], 1))[0][:, -1]
    v = torch.linalg.qr(torch.cat([outer_triplets(W, 20).V, normal(generator(2), 60, 1)], 1))[0][:, -1]
    before, after = outer_triplets(W, 20), outer_triplets(W + 5 * torch.outer(u, v), 20)
    assert overlap(before.U, after.U, 10).intruders(10) == overlap(before.V, after.V, 10).intruders(10) == 1
    assert overlap(before.U, before.U, 10).intruders(10) == 0


def test_svd_that_fails_is_tried_in_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where LAPACK's singular values alone do not converge, the SVD with its fallbacks takes over."""
    A, B = orthonormal(generator(), 40, 9), orthonormal(generator(1), 40, 9)
    expected = principal_angles(A, B)

    def fail(_: Tensor) -> None:
        raise LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    assert torch.allclose(principal_angles(A, B), expected, rtol=0, atol=1e-14)


def test_arguments_are_left_alone() -> None:
    """Neither basis is changed, and a rank beyond the known columns is our own bug."""
    W = tuned(generator(), weight(generator(), "flat", 30, 20), 0.1)
    A, B = outer_triplets(W, 6).U, outer_triplets(W, 5).U
    kept = A.clone(), B.clone()
    both = overlap(A, B, 4)
    both.angles(2)
    both.best()
    assert torch.equal(A, kept[0])
    assert torch.equal(B, kept[1])
    with pytest.raises(AssertionError, match="rank 5 from an overlap of 4"):
        both.angles(5)
    with pytest.raises(AssertionError, match="6 columns of bases of 6 and 5"):
        overlap(A, B, 6)
