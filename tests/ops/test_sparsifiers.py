"""Which entries the sparse sums keep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.ops import magprune
from surgery.ops.random_drop import drop
from surgery.ops.sparsifier import noted
from surgery.ops.uniform import Uniform
from surgery.ops.whole import Piece, Whole
from surgery.spectral.decomposer import Decomposer
from tests.ops.sums import BASE, MODELS, RANDOM, SOURCES, N, kept, made, op
from tests.ops.whole import NAME, edited


def test_ties_are_kept_together():
    """All entries as large as the last that is kept are, whatever their signs and places."""
    W = torch.tensor([1.0, -2.0, 2.0, 2.0, 3.0, 0.5, -2.0, 1.0])
    sources = {"base": torch.zeros(8), "x": W}
    found = made("ties", sources, models=["x"], density=0.25, elements=3)
    assert torch.equal(found, W * (W.abs() >= 2))
    found = made("breadcrumbs", sources, models=["x"], density=0.25, gamma=0.125, elements=3)
    assert torch.equal(found, W * (W.abs() == 2))


def test_at_least_one_entry_is_kept_by_ties():
    """Of a small tensor and a small density."""
    sources = {"base": torch.zeros(4), "x": torch.tensor([1.0, -4.0, 2.0, 3.0])}
    assert torch.equal(made("ties", sources, models=["x"], density=0.01), torch.tensor([0.0, -4.0, 0.0, 0.0]))


def test_breadcrumbs_leave_room_for_the_density():
    """Where density and gamma together exceed 1, gamma gives way."""
    assert kept("breadcrumbs", "x", density=0.9, gamma=0.5).sum() == int(0.9 * N)


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_kept_depends_on_seed_role_and_tensor(name: str):
    """The same again gives the same; each of the three alone gives another mask."""
    step = op(name, models=["x"], density=0.5)
    again, other = op(name, models=["x"], density=0.5), op(name, models=["x"], density=0.5, seed=1)
    sources = {**SOURCES, "y": MODELS["x"]}
    first = edited(step, BASE, sources)
    assert torch.equal(edited(again, BASE, sources, elements=99, rows=3) == BASE, first == BASE)
    for found in (
        edited(other, BASE, sources),
        edited(op(name, models=["y"], density=0.5), BASE, sources),
        edited(step, BASE, sources, name=NAME + "_"),
    ):
        assert 0.3 < ((found == BASE) != (first == BASE)).double().mean() < 0.7


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_as_much_is_kept_as_density_says(name: str, density: float):
    """To 5 standard deviations of the binomial distribution; the seed is fixed."""
    share = kept(name, "x", density=density).double().mean()
    assert abs(share - density) < 5 * math.sqrt(density * (1 - density) / N)


def test_magprune_keeps_what_is_larger_more_often():
    """The share of each rank's entries that is kept, over many rows, is density - epsilon + 2 epsilon r / (n - 1)."""
    rows, n, density, epsilon = 4000, 5, 0.5, 0.4
    generator = torch.Generator().manual_seed(1)
    ranks = torch.stack([torch.randperm(n, generator=generator) for _ in range(rows)])
    signs = torch.randint(0, 2, (rows, n), generator=generator) * 2 - 1
    sources = {"base": torch.zeros(rows, n), "x": ((1.0 + ranks) * signs)}
    found = made("della_linear", sources, models=["x"], density=density, epsilon=epsilon, rescale=False)
    for rank in range(n):
        p = density - epsilon + 2 * epsilon * rank / (n - 1)
        share = (found[ranks == rank] != 0).double().mean()
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / rows)


def bits(*shape: int) -> Tensor:
    """Of a generator of PyTorch's."""
    return torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(3)).int()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.3), (0.8, 0.2), (0.5, 1e-6), (0.4, 2**-32)])
def test_magprune_keeps_where_a_number_is_below_the_probability(dtype: torch.dtype, density: float, epsilon: float):
    """But for those within half a rank of it, of which a coin keeps one half; signs do not matter."""
    n = 500
    d = torch.randn(40, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    drawn = bits(40, n)
    found = magprune.kept(d, density, epsilon, drawn.clone()).bool()
    u = 0.5 + drawn.double() / 2**32
    rank = d.abs().argsort(-1).argsort(-1)
    half, error = epsilon / (n - 1), 2**-23
    p = density - epsilon + 2 * epsilon * rank / (n - 1)
    assert bool(found[u < p - half - error].all())
    assert not bool(found[u > p + half + error].any())
    assert found.double().mean() == pytest.approx(density, abs=5 * math.sqrt(0.25 / d.numel()))


def test_magprune_gives_equals_the_mean_of_their_ranks():
    """Ten levels of magnitude in a row of 1,000, some larger than others: each is kept as its middle would be."""
    n, density, epsilon = 1000, 0.5, 0.4
    sizes = torch.tensor([10, 250, 40, 100, 100, 20, 180, 150, 50, 100])
    row = torch.arange(10.0).repeat_interleave(sizes)
    rows = 200
    order = torch.rand(rows, n, generator=torch.Generator().manual_seed(1)).argsort(-1)
    levels = row[order]
    found = magprune.kept(levels * torch.tensor([1, -1]).repeat(n // 2), density, epsilon, bits(rows, n)).double()
    last = sizes.cumsum(0)
    for level in range(10):
        mean_rank = float(last[level] - (sizes[level] + 1) / 2)
        p = density - epsilon + 2 * epsilon * mean_rank / (n - 1)
        count = rows * int(sizes[level])
        assert abs(found[levels == level].mean() - p) < 5 * math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize(("shape", "epsilon"), [((400, 1), 0.2), ((20, 20), 0.0), ((20, 20), 1e-300)])
def test_magprune_without_ranks_drops_as_dare_does(shape: tuple[int, int], epsilon: float):
    """Rows of one entry, and epsilon 0: the probability is the density, the mask that of the same numbers."""
    d = torch.ones(shape)
    found = magprune.magprune(0.3, epsilon, Uniform(0, "x", NAME))(d.clone(), 4)
    assert torch.equal(found, drop(0.3, Uniform(0, "x", NAME))(d.clone(), 4))


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_magprune_leaves_what_is_not_finite_to_be_found(worst: float):
    """It stays in the result, as NaN or infinity, whatever is dropped."""
    d = torch.randn(50, 20, generator=torch.Generator().manual_seed(2))
    d[:, 3] = worst
    found = magprune.magprune(0.5, 0.2, Uniform(0, "x", NAME))(d, 0)
    assert not bool(found[:, 3].isfinite().any())
    assert bool(found[:, :3].isfinite().all())


def test_della_keeps_a_bit_for_each_entry_of_each_model():
    """If it measures what was dropped, to rescale; then the bits make up for the sort of each row."""
    assert op("della", density=0.5).kept((9, 9)) == 3 * 11
    assert op("della", density=0.5, rescale=False).kept((9, 9)) == op("ties", density=0.5).kept((9, 9)) == 0


def test_what_is_noted_is_chosen_once():
    """The second time of the same piece nothing is chosen; another piece has a choice of its own."""
    asked: list[int] = []

    def choose(d: Tensor, first: int) -> Tensor:
        asked.append(first)
        return (torch.arange(d.numel()).view(d.shape) % 3 == first).to(torch.int8)

    d = torch.zeros(2, 5)
    expected = {first: choose(d, first) for first in (0, 1)}
    asked.clear()
    again = noted(choose)
    for first in (0, 1, 0, 1, 1):
        assert torch.equal(again(d, first), expected[first])
    assert asked == [0, 1]


@pytest.mark.parametrize(
    ("name", "parameters", "passes"),
    [
        ("task_arithmetic", {}, 1),
        ("ties", {}, 1),
        ("ties", {"density": 0.5}, 3),
        ("ties", {"density": [1, 1, 0.5], "rescale": True}, 4),
        ("breadcrumbs", {"density": 0.5}, 3),
        ("dare_ties", {"density": 0.5}, 1),
        ("della", {"density": 0.5, "rescale": False}, 1),
        ("sce", {"select_topk": 0.5}, 4),
        ("ramplus_tl", {}, 2),
    ],
)
def test_passes(name: str, parameters: dict[str, Any], passes: int):
    """Two to measure thresholds, one for sums, one to edit: as many as the plan counts are made."""
    step = op(name, **parameters)
    asked: list[int] = []

    def pieces() -> Iterator[Piece]:
        asked.append(1)
        yield Piece(BASE, SOURCES, 0, Decomposer())

    step.prepare(Whole(NAME, tuple(BASE.shape), pieces))
    assert len(asked) + 1 == step.passes == passes
