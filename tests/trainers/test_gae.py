"""Generalised advantages, by hand and against the sum of the paper written out."""

from __future__ import annotations

import pytest
import torch

from trainers.gae import advantages, normalised


def exact(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    """Three turns, gamma 0.9, lambda 0.5.

    delta_2 = 5 - 2                = 3         A_2 = 3
    delta_1 = -1 + 0.9 * 2 - 0.5   = 0.3       A_1 = 0.3 + 0.45 * 3        = 1.65
    delta_0 = -2 + 0.9 * 0.5 - 1   = -2.55     A_0 = -2.55 + 0.45 * 1.65   = -1.8075
    """
    found, returns = advantages(exact(-2, -1, 5), exact(1, 0.5, 2), gamma=0.9, lam=0.5)
    assert found.tolist() == pytest.approx([-1.8075, 1.65, 3.0], abs=1e-12)
    assert returns.tolist() == pytest.approx([-0.8075, 2.15, 5.0], abs=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("turns", [1, 2, 7])
def test_the_sum_of_equation_16(gamma: float, lam: float, turns: int) -> None:
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, term by term, with V = 0 after the last turn."""
    generator = torch.Generator().manual_seed(turns)
    rewards, values = torch.randn(2, turns, dtype=torch.float64, generator=generator)
    found, returns = advantages(rewards, values, gamma, lam)
    r, v = rewards.tolist(), [*values.tolist(), 0.0]
    for t in range(turns):
        wanted = sum((gamma * lam) ** (s - t) * (r[s] + gamma * v[s + 1] - v[s]) for s in range(t, turns))
        assert found[t].item() == pytest.approx(wanted, abs=1e-12)
        assert returns[t].item() == pytest.approx(wanted + v[t], abs=1e-12)


def test_lambda_1_gives_discounted_rewards_to_go() -> None:
    """With lambda 1 the values cancel: the return is r_t + gamma r_{t+1} + ..., whatever they are."""
    _, returns = advantages(exact(1, 2, 4), exact(7, -3, 0.1), gamma=0.5, lam=1.0)
    assert returns.tolist() == pytest.approx([1 + 1 + 1, 2 + 2, 4], abs=1e-12)


def test_nothing_changes_and_nothing_learns() -> None:
    """The arguments stay as they are, and no gradient flows into the values; the dtype is theirs."""
    rewards, values = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5], requires_grad=True)
    found, returns = advantages(rewards, values, 0.9, 0.95)
    assert not found.requires_grad
    assert not returns.requires_grad
    assert found.dtype == returns.dtype == torch.float32
    assert rewards.tolist() == [1, 2]
    assert values.tolist() == [0.5, 0.5]


def test_shapes() -> None:
    """One value a turn, of one episode."""
    with pytest.raises(ValueError, match=r"rewards of shape \(2,\) and values of shape \(3,\); expected one of each"):
        advantages(exact(1, 2), exact(1, 2, 3), 0.9, 0.95)
    with pytest.raises(ValueError, match="of one episode"):
        advantages(torch.zeros(2, 2), torch.zeros(2, 2), 0.9, 0.95)


def test_normalised() -> None:
    """1, 3, 5, 7 have mean 4 and variance (9 + 1 + 1 + 9) / 4 = 5: -3, -1, 1, 3 over sqrt 5 + 1e-5."""
    assert normalised(exact(1, 3, 5, 7)).tolist() == pytest.approx(
        [-1.34163479, -0.44721160, 0.44721160, 1.34163479], abs=1e-8
    )


@pytest.mark.parametrize("values", [(0.1, 0.1, 0.1), (5.0,), (-1e6, -1e6)])
def test_normalised_without_spread(values: tuple[float, ...]) -> None:
    """Equal advantages, or one alone, tell nothing: zeros, up to rounding."""
    assert normalised(exact(*values)).tolist() == pytest.approx([0.0] * len(values), abs=1e-9)
    assert normalised(torch.tensor(values)).tolist() == pytest.approx([0.0] * len(values), abs=1e-2)
