"""The leading eigenpairs of Gram matrices, against NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from surgery.spectral import cost, lanczos
from surgery.spectral.gram import gram, symmetric, symmetrize_
from surgery.spectral.lanczos import leading_eigenpairs
from surgery.spectral.triplets import MAX_KAPPA, outer_triplets
from tests.strategies import SPECTRA, normal, orthonormal, spectrum, weight, with_values

N, HEAD, MOST = 400, 20, 60


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the workers have: small matrices are slow with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gram_matrix(kind: str, n: int = N) -> Tensor:
    return symmetric(gram(weight(generator(), kind, n, n).float(), torch.float32))


def with_eigenvalues(values: Tensor) -> Tensor:
    """A random symmetric float32 matrix with the given eigenvalues."""
    Q = orthonormal(generator(), len(values), len(values))
    return ((Q * values) @ Q.mT).float()


def check(G: Tensor, head: int, kappa: float, values: Tensor, vectors: Tensor) -> None:
    """Compare with numpy's float64 eigenpairs, in units of float32's rounding error of theta_1.

    The space is that of the pairs down to the first that is far enough from `head` for `kappa`.
    """
    k = int((values > values[-head] - values[-1] / kappa).sum()) + 1
    assert head < k <= len(values)
    values, vectors = values[-k:], vectors[:, -k:]
    theta, V = (torch.from_numpy(x) for x in np.linalg.eigh(G.double().numpy()))
    unit = 2.0**-24 * float(theta[-1])
    Q = vectors.double()
    assert vectors.shape == (len(G), k)
    assert float((Q.mT @ Q - torch.eye(k)).abs().max()) < 1e-5
    assert bool((values.diff() >= 0).all())
    assert float((values[-head:] - theta[-head:]).abs().max()) < 40 * unit
    residuals = (G.double() @ Q - Q * values.double()).norm(dim=0)
    assert float(residuals[-head:].max()) < 40 * unit
    outside = V[:, -head:] - Q @ (Q.mT @ V[:, -head:])
    assert float(outside.norm(dim=0).max()) < 40 * 2.0**-24 * kappa
    assert float(theta[-1]) <= 1.001 * kappa * float(theta[-head] - theta[-k])


@pytest.mark.parametrize("scale", [1e-19, 1.0, 1e28])
@pytest.mark.parametrize("kind", ["decaying", "steep"])
def test_pairs_are_those_of_the_float64_eigensolver(kind: str, scale: float):
    """Leading values, residuals, and the space of the leading eigenvectors, at any scale."""
    G = gram_matrix(kind)
    G *= scale / float(G.trace())
    pairs = leading_eigenpairs(G, HEAD, MOST, MAX_KAPPA)
    assert pairs is not None
    assert len(pairs[0]) == MOST
    check(G, HEAD, MAX_KAPPA, *pairs)


@pytest.mark.parametrize("n", [400, 1600])
@pytest.mark.parametrize("head", [1, 9, 30])
def test_both_block_sizes_and_all_small_heads(n: int, head: int):
    """Blocks of 8 and of 16 columns, and heads below and above them."""
    values = torch.exp(-torch.arange(n, dtype=torch.float64) / 25)
    G = with_eigenvalues(values) if n == 400 else torch.diag(values[torch.randperm(n, generator=generator())]).float()
    pairs = leading_eigenpairs(G, head, head + n // 10, MAX_KAPPA)
    assert pairs is not None
    check(G, head, MAX_KAPPA, *pairs)


def test_as_many_pairs_converge_as_kappa_asks_for():
    """A narrow kappa needs pairs further down; where all of `most` are too close together, they show it."""
    values = torch.cat([torch.linspace(1, 0.5, 50, dtype=torch.float64), torch.zeros(350, dtype=torch.float64) + 1e-3])
    G = with_eigenvalues(values)
    pairs = leading_eigenpairs(G, HEAD, MOST, 4.0)
    assert pairs is not None
    check(G, HEAD, 4.0, *pairs)
    residuals = (G @ pairs[1] - pairs[1] * pairs[0]).norm(dim=0)
    assert float(residuals[-45:].max()) < 3e-6  # theta_20 - theta_45 = 0.255
    for G in (gram_matrix("outlier"), with_eigenvalues((1 + torch.arange(N, dtype=torch.float64)) ** -2)):
        pairs = leading_eigenpairs(G, HEAD, MOST, MAX_KAPPA)
        assert pairs is not None
        assert float(pairs[0][-1]) > MAX_KAPPA * float(pairs[0][-HEAD] - pairs[0][0])


@pytest.mark.parametrize("copies", [2, 7])
def test_few_equal_values_are_all_found(copies: int):
    """Groups of equal eigenvalues that fit into a block come out complete."""
    distinct = torch.exp(-torch.arange(math.ceil(N / copies), dtype=torch.float64) * copies / 30)
    G = with_eigenvalues(distinct.repeat_interleave(copies)[:N])
    pairs = leading_eigenpairs(G, HEAD, MOST, MAX_KAPPA)
    assert pairs is not None
    check(G, HEAD, MAX_KAPPA, *pairs)


@pytest.mark.parametrize("copies", [8, 12, 30])
@pytest.mark.parametrize("width", [0.0, 1e-6])
def test_many_equal_values_are_left_to_others(copies: int, width: float):
    """As many equal or nearly equal values as a block has columns might be only some of them."""
    values = torch.cat(
        [
            torch.linspace(1, 1 - width, copies, dtype=torch.float64),
            0.9 * torch.exp(-torch.arange(N - copies, dtype=torch.float64) / 30),
        ]
    )
    assert leading_eigenpairs(with_eigenvalues(values), HEAD, MOST, MAX_KAPPA) is None


@pytest.mark.parametrize("rank", [3, 8, 21, 40])
def test_low_rank_exhausts_the_space(rank: int):
    """Where G vanishes on what is left, new directions are still orthonormal; values beyond the rank are zero."""
    G = torch.zeros(N, N)
    G[:rank, :rank] = with_eigenvalues(torch.linspace(2, 1, rank, dtype=torch.float64))
    head = min(HEAD, rank)
    pairs = leading_eigenpairs(G, head, MOST, MAX_KAPPA)
    assert pairs is not None
    check(G, head, MAX_KAPPA, *pairs)


def test_hard_or_small_problems_are_refused():
    """Too slow a convergence, no room for a space, and equal values."""
    slow = with_eigenvalues(torch.linspace(1, 0.99, N, dtype=torch.float64))
    assert leading_eigenpairs(slow, HEAD, MOST, 1e9) is None
    for n in (2, 9, 40):
        assert leading_eigenpairs(with_eigenvalues(torch.linspace(2, 1, n, dtype=torch.float64)), 1, n, 1e9) is None
    assert leading_eigenpairs(torch.eye(N), HEAD, MOST, 1e9) is None


def test_same_bits_and_no_trace_in_the_global_generator():
    """Two runs are equal bit by bit whatever torch's random state, which they leave alone, as they do G."""
    G = gram_matrix("decaying")
    copy = G.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = leading_eigenpairs(G, HEAD, MOST, MAX_KAPPA)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = leading_eigenpairs(G, HEAD, MOST, MAX_KAPPA)
    assert first is not None
    assert second is not None
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert torch.equal(G, copy)


def test_lower_triangle_is_mirrored_in_place():
    """`symmetrize_` gives the bits of `symmetric`, over several blocks."""
    G = normal(generator(), 1100, 1100)
    expected = symmetric(G)
    assert symmetrize_(G) is G
    assert torch.equal(G, expected)


def error(factors: tuple[Tensor, Tensor, Tensor], exact: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Distances of the spaces of the right vectors, and of the sums of the triplets, from those of `exact`."""
    (U, S, V), (U0, S0, V0) = ([x.double() for x in each] for each in (factors, exact))
    space = torch.linalg.norm(V @ V.mT - V0 @ V0.mT)
    return float(space), float(torch.linalg.norm((U * S) @ V.mT - (U0 * S0) @ V0.mT) / S0[0])


@pytest.mark.parametrize("shape", [(600, 400), (400, 500)])
@pytest.mark.parametrize("kind", SPECTRA)
def test_small_heads_are_no_worse_than_a_float32_svd(
    monkeypatch: pytest.MonkeyPatch, kind: str, shape: tuple[int, int]
):
    """Triplets by way of the iteration against a float64 SVD, and the float32 SVD's error as measure."""
    monkeypatch.setattr(cost, "LANCZOS_SIDE", 300)
    W = weight(generator(), kind, *shape).float()
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    exact = (U[:, :HEAD], S[:HEAD], Vh[:HEAD].mT)
    plain = torch.linalg.svd(W, full_matrices=False)
    found = outer_triplets(W, HEAD)
    for ours, theirs in zip(
        error((found.U, found.S, found.V), exact),
        error((plain[0][:, :HEAD], plain[1][:HEAD], plain[2][:HEAD].mT), exact),
        strict=True,
    ):
        assert ours < theirs
    for X in (found.U.double(), found.V.double()):
        assert float((X.mT @ X - torch.eye(HEAD)).abs().max()) < 1e-6
    assert torch.allclose(found.S, S[:HEAD], rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("n", "head", "kind", "sizes"),
    [
        (200, 16, "steep", "small"),  # the iteration, and nothing else
        (200, 16, "equal", "full"),  # refused
        (200, 17, "steep", "full"),
        (199, 10, "steep", "full"),
    ],
)
def test_iteration_is_for_small_heads_of_large_matrices(
    monkeypatch: pytest.MonkeyPatch, n: int, head: int, kind: str, sizes: str
):
    """Whether all eigenvectors of the Gram matrix are computed depends on n, head, and what the iteration finds."""
    monkeypatch.setattr(cost, "LANCZOS_SIDE", 200)
    largest = 0
    eigh = torch.linalg.eigh

    def watched(X: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal largest
        largest = max(largest, len(X))
        return eigh(X)

    monkeypatch.setattr(torch.linalg, "eigh", watched)
    W = with_values(generator(), 300, n, spectrum(kind, n)).float()
    found = outer_triplets(W, head)
    assert (largest == n) == (sizes == "full")
    assert torch.allclose(found.S, spectrum(kind, n)[:head], rtol=1e-6)


def test_blocks_are_smaller_for_small_matrices():
    """Degree counts for more there; the tests above rely on both sizes being used."""
    assert lanczos.SMALL_BLOCK == 8 < lanczos.BLOCK == 16
    assert 400 < lanczos.SMALL <= 1600
