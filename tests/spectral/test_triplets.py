from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from surgery.errors import NumericalError
from surgery.spectral import svd as svd_module
from surgery.spectral import triplets as module
from surgery.spectral.gram import gram, symmetric
from surgery.spectral.svd import svd
from surgery.spectral.triplets import Triplets, outer_triplets, require_finite, singular_values
from tests.strategies import SPECTRA, normal, orthonormal, pairs, spectrum, weight, with_values


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormality(X: Tensor) -> float:
    """The largest entry of X^T X - I."""
    X = X.double()
    return float((X.mT @ X - torch.eye(X.shape[1], dtype=torch.float64)).abs().max())


def product(triplets: Triplets) -> Tensor:
    return (triplets.U.double() * triplets.S) @ triplets.V.double().mT


def taken(W: Tensor, head: int, tail: int) -> str:
    """The name of the route that `outer_triplets` takes for a float32 matrix with rows >= cols."""
    if module._ritz(W, head, tail) is not None:
        return "ritz"
    return "svd64" if module._gram64(W, head, tail) is None else "gram64"


def test_gram_is_w_transposed_w():
    """The Gram matrix is W^T W in both precisions, over several blocks of rows and columns, for strided W."""
    W = normal(generator(), 1100, 2500).float().mT
    expected = W.double().mT @ W.double()
    assert torch.allclose(symmetric(gram(W, torch.float64)), expected, rtol=0, atol=1e-10)
    assert torch.allclose(symmetric(gram(W, torch.float32)).double(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("shape", [(300, 160), (160, 300), (200, 200)])
@pytest.mark.parametrize(("head", "tail"), [(32, 0), (150, 0), (0, 20), (20, 30), (1, 0), (0, 1)])
@pytest.mark.parametrize("kind", ["decaying", "flat"])
def test_outer_triplets_are_those_of_the_float64_svd(kind: str, head: int, tail: int, shape: tuple[int, int]):
    """Values, and the sum of the triplets, agree with a float64 SVD; the factors are orthonormal."""
    W = weight(generator(), kind, *shape).float()
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    n = min(shape)
    outer = [*range(head), *range(n - tail, n)]
    found = outer_triplets(W, head, tail)
    assert torch.allclose(found.S, S[outer], rtol=2e-6, atol=1e-7)
    assert (product(found) - (U[:, outer] * S[outer]) @ Vh[outer]).norm() < 1e-5 * W.norm()
    assert found.U.dtype == found.V.dtype == torch.float32
    assert found.S.dtype == torch.float64
    assert max(orthonormality(found.U), orthonormality(found.V)) < 3e-6


@pytest.mark.parametrize(
    ("kind", "head", "tail", "route"),
    [
        ("decaying", 40, 0, "ritz"),
        ("flat", 40, 0, "ritz"),
        ("outlier", 40, 0, "gram64"),
        ("power law", 100, 0, "gram64"),
        ("decaying", 40, 10, "gram64"),
        ("steep", 40, 10, "svd64"),
        ("low rank", 120, 0, "svd64"),
    ],
)
def test_route_follows_the_spectrum(kind: str, head: int, tail: int, route: str):
    """Float32 where the spectrum allows it, the float64 Gram matrix and the SVD where it does not."""
    W = weight(generator(), kind, 300, 200).float()
    if kind == "low rank":  # exactly: float32 rounding restores the rank
        W[:, 100:] = 0
    assert taken(W, head, tail) == route


@pytest.mark.parametrize("route", ["_ritz", "_gram64", "_svd64"])
def test_every_route_finds_the_same_triplets(route: str):
    """The three routes agree where all apply."""
    W = weight(generator(), "decaying", 300, 200).float()
    found = getattr(module, route)(W, 40, 0)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    assert (product(found) - (U[:, :40] * S[:40]) @ Vh[:40]).norm() < 3e-6 * W.norm()


def test_near_deficient_tail_is_resolved():
    """Values down to 1e-9 sigma_1 come out to float32's absolute accuracy, with orthonormal vectors."""
    values = torch.logspace(0, -9, 60, dtype=torch.float64)
    W = with_values(generator(), 90, 60, values)
    found = outer_triplets(W, 10, 20)
    assert torch.allclose(found.S, values[[*range(10), *range(40, 60)]], rtol=1e-5, atol=1e-15)
    assert max(orthonormality(found.U), orthonormality(found.V)) < 1e-12


@pytest.mark.parametrize("kind", ["zero", "rank 2"])
def test_rank_deficient_factors_are_completed(kind: str):
    """Where singular values are exactly 0 the vectors are an orthonormal completion."""
    W = torch.zeros(40, 30)
    if kind == "rank 2":
        W += (normal(generator(), 40, 2) @ normal(generator(1), 2, 30)).float()
    for head, tail in ((10, 0), (30, 0), (5, 5)):
        found = outer_triplets(W, head, tail)
        assert max(orthonormality(found.U), orthonormality(found.V)) < 3e-6
        assert torch.allclose(found.S[2:], torch.zeros(1, dtype=torch.float64), atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(pairs())
def test_small_and_poor_matrices_decompose(pair: tuple[Tensor, Tensor]):
    """All triplets of any small matrix, 1 x n and n x 1 included, make up the matrix; values match the SVD's."""
    for W in pair:
        found = outer_triplets(W, min(W.shape))
        scale = float(W.norm()) + 1e-30
        assert (product(found) - W).norm() < 5e-6 * scale
        assert max(orthonormality(found.U), orthonormality(found.V)) < 1e-5
        expected = torch.linalg.svdvals(W.double())
        assert torch.allclose(singular_values(W), expected, rtol=1e-6, atol=1e-7 * scale)


def test_extreme_magnitudes_neither_overflow_nor_vanish():
    """Entries whose squares leave float32's range are decomposed all the same."""
    W = weight(generator(), "decaying", 60, 40).float()
    for scale in (1e30, 1e-30):
        expected = torch.linalg.svdvals(W.double() * scale)[:8]
        assert torch.allclose(outer_triplets(W * scale, 8).S, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", SPECTRA)
def test_repeated_runs_give_the_same_bits(kind: str):
    """Two decompositions of one matrix are equal bit by bit."""
    W = weight(generator(), kind, 200, 150).float()
    first, second = outer_triplets(W, 30), outer_triplets(W.clone(), 30)
    assert torch.equal(first.U, second.U)
    assert torch.equal(first.S, second.S)
    assert torch.equal(first.V, second.V)


def test_eigensolver_that_fails_is_replaced(monkeypatch: pytest.MonkeyPatch):
    """When the symmetric eigensolver does not converge, the SVD takes over."""

    def fail(*_: object) -> None:
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    W = weight(generator(), "decaying", 60, 40).float()
    expected = torch.linalg.svdvals(W.double())
    assert torch.allclose(outer_triplets(W, 10).S, expected[:10], rtol=1e-6)
    assert torch.allclose(singular_values(W), expected, rtol=1e-6)


@pytest.mark.parametrize("hopeless", [[], [torch.float32], [torch.float32, torch.float64]])
def test_svd_that_fails_is_tried_in_other_ways(monkeypatch: pytest.MonkeyPatch, hopeless: list[torch.dtype]):
    """A matrix on which LAPACK fails, in float32 or in both precisions, is decomposed all the same."""
    W = with_values(generator(), 20, 12, spectrum("decaying", 12)).float()
    direct = svd_module._direct

    def flaky(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if X.dtype in hopeless and torch.equal(X.double(), W.double()):
            raise svd_module.LinAlgError("failed to converge")
        return direct(X)

    monkeypatch.setattr(svd_module, "_direct", flaky)
    U, S, Vh = svd(W)
    assert U.dtype == S.dtype == Vh.dtype == torch.float32
    assert ((U * S) @ Vh - W).norm() < 2e-6
    assert torch.allclose(S.double(), spectrum("decaying", 12), rtol=1e-5)
    assert orthonormality(U) < 3e-6


def test_svd_that_always_fails_is_a_numerical_error(monkeypatch: pytest.MonkeyPatch):
    """Only when every way fails the run ends, with a message that says so."""

    def fail(_: Tensor) -> None:
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(svd_module, "_direct", fail)
    with pytest.raises(NumericalError, match=r"20x12 matrix did not converge"):
        svd(torch.ones(20, 12))


def test_bad_values_are_counted_and_named():
    """NaN and infinities are counted, of either sign; finite entries of any size pass, even if their sum overflows."""
    W = torch.ones(4, 5)
    require_finite(W * 1e38, "`base`")
    W[0, 0], W[1, 1], W[2, 2] = float("nan"), float("inf"), float("-inf")
    with pytest.raises(NumericalError, match=r"`base` has 3 values of 20 that are NaN or infinite"):
        require_finite(W, "`base`")


def test_orthonormal_matrix_has_equal_values():
    """All values of an orthonormal matrix are 1, whatever basis comes out."""
    W = orthonormal(generator(), 50, 30).float()
    assert torch.allclose(outer_triplets(W, 10).S, torch.ones(10, dtype=torch.float64), rtol=1e-6)
