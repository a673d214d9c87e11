"""Losses of PPO: by hand, against finite differences, cut into pieces, and at their edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from trainers.config import Ratio
from trainers.ppo_loss import (
    LOG_RATIO,
    RatioStatistics,
    explained_variance,
    kl_penalty,
    policy_loss,
    value_loss,
)

RATIOS: list[Ratio] = ["response", "token"]
CLIP = 0.2


def ratio_count(mask: torch.Tensor, ratio: Ratio) -> int:
    """How many ratios there are in responses of this mask (B, R): B, or the number of tokens."""
    return len(mask) if ratio == "response" else int(mask.sum())


def exact(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logs(*ratios: float) -> list[float]:
    return [math.log(ratio) for ratio in ratios]


# Old log-probabilities are 0 and the new ones logarithms of ratios. The last response has one token.
MASK = torch.tensor([[True, True], [True, True], [True, False]])
NEW = exact([logs(1.25, 1.2), logs(0.5, 0.8), logs(1.1, 7.0)])
OLD = torch.zeros_like(NEW)
ADVANTAGES = exact([2.0, -1.0, 3.0])


def numerical(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """Central differences, the step small against what clips."""
    step, found = 1e-6, torch.zeros_like(at)
    for i in range(at.numel()):
        moved = torch.zeros_like(at).flatten()
        moved[i] = step
        moved = moved.view_as(at)
        found.view(-1)[i] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found


def grad(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(loss, of)
    return found


def test_responses_by_hand() -> None:
    """Ratios 1.25 * 1.2 = 1.5, 0.5 * 0.8 = 0.4, and 1.1.

    A =  2: min(1.5 * 2, 1.2 * 2)    =  2.4
    A = -1: min(-0.4, -0.8)          = -0.8
    A =  3: min(1.1 * 3, 1.1 * 3)    =  3.3
    -(2.4 - 0.8 + 3.3) / 3 = -1.6333333
    Statistics: mean (1.5 + 0.4 + 1.1) / 3 = 1; two of three beyond 0.2 of 1;
    KL: (0.5 - ln 1.5 = 0.09453489) + (-0.6 - ln 0.4 = 0.31629073) + (0.1 - ln 1.1 = 0.00468982), over 3: 0.13850515.
    """
    loss, statistics = policy_loss(NEW, OLD, MASK, ADVANTAGES, CLIP, "response", 3)
    assert loss.item() == pytest.approx(-4.9 / 3, abs=1e-12)
    assert statistics.figures() == pytest.approx(
        {"ratio_mean": 1.0, "ratio_min": 0.4, "ratio_max": 1.5, "clip_fraction": 2 / 3, "kl": 0.13850515}, abs=1e-8
    )


def test_tokens_by_hand() -> None:
    """Ratios 1.25, 1.2 with A = 2, 0.5, 0.8 with A = -1, 1.1 with A = 3; 1.2 and 0.8 are not beyond the clip.

    min(2.5, 2.4) + 2.4 + min(-0.5, -0.8) - 0.8 + 3.3 = 6.5, of five tokens: -1.3
    Mean ratio 4.85 / 5 = 0.97; 1.25 and 0.5 are clipped: 0.4.
    KL: 0.25 - ln 1.25 = 0.02685645, 0.2 - ln 1.2 = 0.01767844, -0.5 - ln 0.5 = 0.19314718, -0.2 - ln 0.8 = 0.02314355,
    0.1 - ln 1.1 = 0.00468982; over 5: 0.05310309.
    """
    new = NEW.clone()
    new[0, 1], new[1, 1] = math.log(1.2 - 1e-12), math.log(0.8 + 1e-12)
    loss, statistics = policy_loss(new, OLD, MASK, ADVANTAGES, CLIP, "token", ratio_count(MASK, "token"))
    assert loss.item() == pytest.approx(-1.3, abs=1e-10)
    assert statistics.figures() == pytest.approx(
        {"ratio_mean": 0.97, "ratio_min": 0.5, "ratio_max": 1.25, "clip_fraction": 0.4, "kl": 0.05310309}, abs=1e-8
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # better than before, and likelier by more than the clip: no more of it
        (0.5, 2.0, -1.0, -1.0),  # good, and less likely: d(-r A)/d log r = -r A
        (1.5, -2.0, 3.0, 3.0),  # bad, and likelier
        (0.5, -2.0, 1.6, 0.0),  # bad, and less likely by more than the clip
        (1.0, 2.0, -2.0, -2.0),  # where both branches are equal the gradient is whole
        (1.0, -2.0, 2.0, 2.0),
    ],
)
@pytest.mark.parametrize("kind", RATIOS)
def test_both_branches(kind: Ratio, ratio: float, advantage: float, loss: float, slope: float) -> None:
    """The loss and its slope by the log-ratio, of one response of one token: the two kinds of ratio agree."""
    new = exact([[math.log(ratio)]]).requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    found, _ = policy_loss(new, torch.zeros(1, 1), mask, exact([advantage]), CLIP, kind, 1)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert grad(found, new).item() == pytest.approx(slope, abs=1e-12)


def random_batch(n: int = 6, tokens: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities that move some ratios beyond the clip and others not; lengths from 0 on."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(n, tokens, dtype=torch.float64, generator=generator) * 3
    new = old + torch.randn(n, tokens, dtype=torch.float64, generator=generator) * 0.2
    mask = torch.arange(tokens) < torch.arange(n)[:, None].clamp(max=tokens)
    return new, old, mask, torch.randn(n, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("ratio", RATIOS)
def test_gradients(ratio: Ratio) -> None:
    """Against central differences and autograd's own check; none flows into padding or the old policy."""
    new, old, mask, weights = random_batch()
    count = ratio_count(mask, ratio)

    def loss(new: torch.Tensor) -> torch.Tensor:
        return policy_loss(new, old, mask, weights, CLIP, ratio, count)[0]

    at = new.clone().requires_grad_()
    found = grad(loss(at), at)
    assert torch.allclose(found, numerical(loss, new), atol=1e-8, rtol=0)
    assert found.abs().sum() > 0.1
    assert not found[~mask].any()
    assert torch.autograd.gradcheck(loss, (at,))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up(ratio: Ratio, size: int) -> None:
    """Losses and gradients of the pieces are the whole's, and their statistics too; so they are of devices' pieces."""
    new, old, mask, weights = random_batch()
    count = ratio_count(mask, ratio)
    at = new.clone().requires_grad_()
    whole, statistics = policy_loss(at, old, mask, weights, CLIP, ratio, count)
    wanted = grad(whole, at)
    pieces = [
        policy_loss(at[i : i + size], old[i : i + size], mask[i : i + size], weights[i : i + size], CLIP, ratio, count)
        for i in range(0, len(new), size)
    ]
    assert sum(loss.item() for loss, _ in pieces) == pytest.approx(whole.item(), abs=1e-12)
    for loss, _ in pieces:
        loss.backward()
    assert at.grad is not None
    assert torch.allclose(at.grad, wanted, atol=1e-12, rtol=0)
    total = pieces[0][1]
    for _, part in pieces[1:]:
        total = total + part
    assert total.figures() == pytest.approx(statistics.figures(), abs=1e-12)
    sums = torch.stack([part.sums for _, part in pieces]).sum(dim=0)
    extrema = torch.stack([part.extrema for _, part in pieces]).amax(dim=0)
    assert RatioStatistics(sums, extrema).figures() == pytest.approx(statistics.figures(), abs=1e-12)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("nonsense", [1e30, math.inf, -math.inf, math.nan])
def test_padding_has_no_influence(ratio: Ratio, nonsense: float) -> None:
    """Whatever stands where no token is: neither in the loss nor in gradients or statistics."""
    new, old, mask, weights = random_batch()
    wanted, statistics = policy_loss(new, old, mask, weights, CLIP, ratio, 6)
    at = new.masked_fill(~mask, nonsense).requires_grad_()
    found, others = policy_loss(at, old.masked_fill(~mask, 1.0), mask, weights, CLIP, ratio, 6)
    assert found.item() == wanted.item()
    assert others.figures() == statistics.figures()
    assert grad(found, at).isfinite().all()


@pytest.mark.parametrize("ratio", RATIOS)
def test_far_policies_give_finite_numbers(ratio: Ratio) -> None:
    """Log-ratios whose exponential float32 does not hold are cut off; loss, gradient and statistics stay finite."""
    new = torch.tensor([[400.0, -400.0], [300.0, 300.0], [-300.0, -300.0]], requires_grad=True)
    mask = torch.ones(3, 2, dtype=torch.bool)
    loss, statistics = policy_loss(new, torch.zeros(3, 2), mask, torch.tensor([-1.0, -1.0, 1.0]), CLIP, ratio, 3)
    assert loss.isfinite()
    assert grad(loss, new).isfinite().all()
    figures = statistics.figures()
    assert all(map(math.isfinite, figures.values()))
    assert figures["ratio_max"] == pytest.approx(math.exp(LOG_RATIO), rel=1e-5)


@pytest.mark.parametrize("ratio", RATIOS)
def test_equal_policies(ratio: Ratio) -> None:
    """Every ratio is 1 to the last bit, nothing is clipped, the KL is 0; an empty response counts as one."""
    _, old, mask, weights = random_batch()
    loss, statistics = policy_loss(old, old, mask, weights, CLIP, ratio, ratio_count(mask, ratio))
    assert statistics.figures() == {"ratio_mean": 1, "ratio_min": 1, "ratio_max": 1, "clip_fraction": 0, "kl": 0}
    repeated = weights if ratio == "response" else weights[:, None].expand(mask.shape)[mask]
    assert loss.item() == pytest.approx(-repeated.mean().item(), abs=1e-12)


def test_no_tokens_at_all() -> None:
    """Loss and gradient are 0, and the statistics those of equal policies; beside others they are as if not there."""
    new = torch.zeros(2, 1, requires_grad=True)
    loss, nothing = policy_loss(new, new.detach(), torch.zeros(2, 1).bool(), torch.ones(2), CLIP, "token", 5)
    assert loss.item() == 0
    assert not grad(loss, new).any()
    assert nothing.figures() == {"ratio_mean": 1, "ratio_min": 1, "ratio_max": 1, "clip_fraction": 0, "kl": 0}
    _, statistics = policy_loss(NEW, OLD, MASK, ADVANTAGES, CLIP, "token", 5)
    assert (statistics + nothing).figures() == statistics.figures()


def test_value_loss_by_hand() -> None:
    """Clip 0.5, old values 1.

    V = 2,   R = 3: clipped to 1.5;   max(1, 2.25)    = 2.25   (V moved towards R, too far: no gradient)
    V = 2,   R = 0: clipped to 1.5;   max(4, 2.25)    = 4      (V moved away: gradient V - R = 2)
    V = 1.2, R = 2: not clipped;      0.64                     (gradient -0.8)
    0.5 * (2.25 + 4 + 0.64) / 3 = 1.1483333
    """
    values = exact([2.0, 2.0, 1.2]).requires_grad_()
    loss = value_loss(values, exact([1.0, 1.0, 1.0]), exact([3.0, 0.0, 2.0]), clip=0.5, count=3)
    assert loss.item() == pytest.approx(3.445 / 3, abs=1e-12)
    assert grad(loss, values).tolist() == pytest.approx([0, 2 / 3, -0.8 / 3], abs=1e-12)


def test_value_loss_gradients_and_pieces() -> None:
    """Against central differences; the pieces of a minibatch add up."""
    generator = torch.Generator().manual_seed(1)
    values, old, returns = torch.randn(3, 8, dtype=torch.float64, generator=generator)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return value_loss(values, old, returns, 0.3, 8)

    at = values.clone().requires_grad_()
    assert torch.allclose(grad(loss(at), at), numerical(loss, values), atol=1e-8, rtol=0)
    assert torch.autograd.gradcheck(loss, (at,))
    pieces = [value_loss(at[i : i + 3], old[i : i + 3], returns[i : i + 3], 0.3, 8) for i in range(0, 8, 3)]
    assert sum(piece.item() for piece in pieces) == pytest.approx(loss(values).item(), abs=1e-12)


def test_kl_penalty() -> None:
    """The sum over the tokens there are: -1 + 2 - (-1.5 + 1) = 1.5, and -3 + 2 = -1; padding may hold anything."""
    logprobs = exact([[-1.0, 2.0], [-3.0, math.nan]]).requires_grad_()
    found = kl_penalty(logprobs, exact([[-1.5, 1.0], [-2.0, 5.0]]), torch.tensor([[True, True], [True, False]]))
    assert found.tolist() == pytest.approx([1.5, -1.0], abs=1e-12)
    assert not found.requires_grad


def test_explained_variance() -> None:
    """Returns 1, 2, 3 have variance 2/3; residuals 0, 0, 1 have (2 * 1/9 + 4/9) / 3 = 2/9: 1 - 1/3."""
    returns = exact([1.0, 2.0, 3.0])
    assert explained_variance(exact([1.0, 2.0, 2.0]), returns) == pytest.approx(2 / 3, abs=1e-12)
    assert explained_variance(returns, returns) == 1
    assert explained_variance(returns + 5, returns) == pytest.approx(1, abs=1e-12)
    assert explained_variance(exact([5.0, 5.0, 5.0]), returns) == pytest.approx(0, abs=1e-12)
    assert explained_variance(-returns, returns) == pytest.approx(-3, abs=1e-12)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_nothing_to_explain(n: int) -> None:
    """Returns that are all equal, whatever the values."""
    assert explained_variance(torch.rand(n), torch.full((n,), 0.1)) == 0
