"""The losses of proximal policy optimisation, and figures that tell how it goes.

Losses are sums over what is given, divided by a `count` that the caller names: that of the whole minibatch. So the
losses and gradients of the micro-batches that a minibatch is cut into add up to its own.
Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv 1707.06347).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainers.config import Ratio

# Log-ratios beyond this are cut to it, for a response of many tokens may reach hundreds, and float32 ends at exp(88).
# Clipping stops the gradient far earlier (at log 1.1) but for one case: a bad answer that has become likelier. There
# this is the bound of "dual clip" (Ye et al. 2020, arXiv 1912.09729), with exp(20) = 5e8 for their 3: wide enough to
# touch none but runs that have gone wrong, whose `ratio_max` shows it.
LOG_RATIO = 20.0


@dataclass(frozen=True)
class RatioStatistics:
    """Of probability ratios new / old, without gradient; micro-batches' add up, with `+`.

    Devices' do as well: `sums` (4,) by adding (how many ratios; of the ratios; how many are clipped; of the KL
    estimates), `extrema` (2,) by the maximum (minus the least ratio; the greatest).
    """

    sums: torch.Tensor
    extrema: torch.Tensor

    def __add__(self, other: RatioStatistics) -> RatioStatistics:
        return RatioStatistics(self.sums + other.sums, torch.maximum(self.extrema, other.extrema))

    def figures(self) -> dict[str, float]:
        """`ratio_mean`, `ratio_min`, `ratio_max`, `clip_fraction` and `kl`; those of equal policies where none is.

        `clip_fraction` is the share of ratios outside of [1 - clip, 1 + clip]. `kl` estimates KL(old || new) of what a
        ratio stands for, a response or a token, by the mean of (r - 1) - log r: unbiased and never negative
        (J. Schulman 2020, "Approximating KL Divergence", k3).
        """
        count, ratios, clipped, kl = self.sums.tolist()
        low, high = self.extrema.tolist()
        if not count:
            return {"ratio_mean": 1.0, "ratio_min": 1.0, "ratio_max": 1.0, "clip_fraction": 0.0, "kl": 0.0}
        return {
            "ratio_mean": ratios / count,
            "ratio_min": -low,
            "ratio_max": high,
            "clip_fraction": clipped / count,
            "kl": kl / count,
        }


def policy_loss(
    new: torch.Tensor,
    old: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    clip: float,
    ratio: Ratio,
    count: float,
) -> tuple[torch.Tensor, RatioStatistics]:
    """The clipped surrogate, to be minimised: -sum min(r A, clamp(r, 1 - clip, 1 + clip) A) / count, and statistics.

    `new` and `old` (B, R) are log-probabilities of the responses' tokens, floating point, of which the bool `mask`
    (B, R) says which there are: what stands elsewhere has no influence. `advantages` (B,) are the responses'.
    With `ratio="response"` a response is one action, and r = exp(sum over its tokens of new - old); one without
    tokens has r = 1. With `token` each token has its own r = exp(new - old), and the response's advantage.
    `count` is how many ratios the whole minibatch has. Log-ratios are cut to +-`LOG_RATIO`, beyond which there is no
    gradient. Schulman et al. 2017, the clipped objective.
    """
    log_ratios = (new - old).masked_fill(~mask, 0.0)
    if ratio == "response":
        log_ratios = log_ratios.sum(dim=1)
    else:
        log_ratios, advantages = log_ratios[mask], advantages[:, None].expand(mask.shape)[mask]
    log_ratios = log_ratios.clamp(-LOG_RATIO, LOG_RATIO)
    ratios = log_ratios.exp()
    surrogate = torch.minimum(ratios * advantages, ratios.clamp(1 - clip, 1 + clip) * advantages)
    return -surrogate.sum() / count, _statistics(log_ratios.detach(), clip)


def _statistics(log_ratios: torch.Tensor, clip: float) -> RatioStatistics:
    ratios = log_ratios.exp()
    clipped = (ratios - 1).abs() > clip
    kl = torch.expm1(log_ratios) - log_ratios  # of equal policies 0, to the last bit
    sums = torch.stack([torch.ones_like(ratios).sum(), ratios.sum(), clipped.to(ratios.dtype).sum(), kl.sum()])
    nothing = ratios.new_full((1,), -torch.inf)
    return RatioStatistics(sums, torch.stack([torch.cat([each, nothing]).amax() for each in (-ratios, ratios)]))


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float, count: float
) -> torch.Tensor:
    """The clipped value loss: sum 0.5 max((V - R)^2, (V_old + clamp(V - V_old, -clip, clip) - R)^2) / count.

    `values` V, `old_values` V_old (at the time of the rollout) and `returns` R are (B,), floating point; `count` is the
    number of responses of the whole minibatch. A value that has moved by more than `clip` towards its return has no
    gradient. Not in Schulman et al. 2017, but in OpenAI's code of it (`baselines`, ppo2) and in arXiv 2501.17161.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square()).sum() / count


def kl_penalty(logprobs: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log pi - log pi_ref (B,) of responses by the log-probabilities (B, R) of their tokens, which `mask` (B, R) tells.

    Rewards are lowered by it, r - beta (log pi - log pi_ref), which takes beta KL(pi || pi_ref) off in the mean
    (Ziegler et al. 2019, arXiv 1909.08593). No gradient flows.
    """
    return (logprobs - reference).detach().masked_fill(~mask, 0.0).sum(dim=1)


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) of (N,) each: 1 for a perfect value function, 0 for a constant one.

    Where all returns are equal there is nothing to explain: 0.
    """
    returns = returns.detach().cpu().double()
    if not len(returns) or returns.amax() == returns.amin():
        return 0.0
    left = returns - values.detach().cpu().double()
    return 1.0 - float(left.var(correction=0) / returns.var(correction=0))
