"""The moving average of weights, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainers.averaging import WeightAverage


def tied() -> nn.Module:
    """Embeddings whose weights are the head's, and a norm."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 5, bias=False))
    network[2].weight = network[0].weight
    return network


def moved(network: nn.Module) -> None:
    """Random weights."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight))


def test_three_steps_by_hand() -> None:
    """a_0 = w_0 and a_t = d a_(t-1) + (1 - d) w_t: in one sum, with float64."""
    network, seen = tied(), []
    average = WeightAverage(network, 0.9)
    seen.append([weight.detach().double() for weight in network.parameters()])
    for _ in range(3):
        moved(network)
        average.update()
        seen.append([weight.detach().double() for weight in network.parameters()])
    shares = (0.9**3, 0.9**2 * 0.1, 0.9 * 0.1, 0.1)
    with average.in_place():
        for i, found in enumerate(network.parameters()):
            expected = sum(share * weights[i] for share, weights in zip(shares, seen, strict=True))
            assert (found - expected).abs().max() < 1e-6
        assert network[2].weight is network[0].weight


def test_weights_come_back() -> None:
    """Bit for bit, also after an error; what was taken from the network meanwhile stays the average."""
    network = tied()
    average = WeightAverage(network, 0.5)
    moved(network)
    before = [weight.detach().clone() for weight in network.parameters()]
    average.update()
    taken: dict[str, torch.Tensor] = {}
    inside: dict[str, torch.Tensor] = {}

    def interrupted() -> None:
        with average.in_place():
            taken.update(network.state_dict())
            inside.update({name: tensor.clone() for name, tensor in taken.items()})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(torch.equal(inside[name], taken[name]) for name in inside)
    assert not torch.equal(inside["0.weight"], before[0])


def test_a_saved_average_goes_on(tmp_path: Path) -> None:
    """Once it is loaded, the next step gives the same bits."""
    network = tied()
    first, second = WeightAverage(network, 0.9), WeightAverage(network, 0.9)
    moved(network)
    first.update()
    first.save(tmp_path)
    second.load(tmp_path)
    moved(network)
    results = []
    for average in (first, second):
        average.update()
        with average.in_place():
            results.append([weight.detach().clone() for weight in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
