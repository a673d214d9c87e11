"""Which entries the sparse sums keep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from surgery.ops.magprune import probabilities
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_magprune(dtype: torch.dtype):
    """They rise with the rank in the row, of equal magnitudes from left to right; one alone has the density."""
    d = torch.tensor([[3.0, -1.0, 0.0, 2.0, -4.0], [1.0, -1.0, 1.0, 0.0, -1.0]], dtype=dtype)
    expected = torch.tensor([[0.6, 0.4, 0.3, 0.5, 0.7], [0.4, 0.5, 0.6, 0.3, 0.7]])
    assert torch.allclose(probabilities(d, 0.5, 0.2), expected)
    assert torch.allclose(probabilities(d[:, :1], 0.3, 0.2), torch.tensor([[0.3], [0.3]]))


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
