"""Advantages of the turns of an episode, and what each turn's value should have been."""

from __future__ import annotations

import torch

EPSILON = 1e-5  # added to the standard deviation: differences of rounding among equal advantages stay small


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates A (T,) and returns A + V (T,) of one episode of T turns.

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = sum over l >= 0 of (gamma lam)^l delta_{t+l},

    by `rewards` r (T,) of the turns and `values` V (T,) of the prompts before them, floating point. The episode ends
    with its last turn: V_T = 0. So it does where attempts or context have run out, since that is the game and no
    interruption of it: no answer can follow, and nothing be won any more (the setting of arXiv 2501.17161, whose
    number of verifications is fixed). No gradient flows. Raises ValueError for other shapes.
    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation".
    """
    if rewards.ndim != 1 or rewards.shape != values.shape:
        raise ValueError(
            f"found rewards of shape {tuple(rewards.shape)} and values of shape {tuple(values.shape)}; expected one of "
            "each for every turn of one episode, (T,)"
        )
    with torch.no_grad():
        after = torch.cat([values[1:], values.new_zeros(min(1, len(values)))])
        deltas = rewards + gamma * after - values
        found = torch.empty_like(deltas)
        running = deltas.new_zeros(())
        for t in reversed(range(len(deltas))):
            running = deltas[t] + gamma * lam * running
            found[t] = running
        return found, found + values


def normalised(advantages: torch.Tensor) -> torch.Tensor:
    """Advantages (N,) of all turns of all episodes, centred and scaled: (A - mean) / (std + EPSILON).

    The standard deviation is the population's. Equal advantages, or a single one, become zeros.
    """
    centred = advantages - advantages.mean()
    return centred / (centred.square().mean().sqrt() + EPSILON)
