"""Formulas of mergekit's methods, as its documentation and the papers have them, in plain float64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor


def gradient(setting: Any, name: str, layers: int) -> float:
    """The value of a parameter for a tensor: the first filter that is in its name; a gradient from 0 to 1 over the
    layers, 0 outside of them.
    """
    if isinstance(setting, list) and isinstance(setting[0], dict):
        setting = next(item["value"] for item in setting if item.get("filter", "") in name)
    if not isinstance(setting, list):
        return float(setting)
    layer = re.search(r"layers\.(\d+)\.", name)
    depth = int(layer[1]) / (layers - 1) if layer else 0.0
    return float(np.interp(depth, np.linspace(0, 1, len(setting)), setting))


def slerp(t: float, a: Tensor, b: Tensor) -> Tensor:
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    if angle.cos() > 0.9995:
        return (1 - t) * a + t * b
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The largest entries."""
    kept = max(1, int(density * delta.numel()))
    smallest = delta.abs().flatten().sort(descending=True).values[kept - 1]
    return delta * (delta.abs() >= smallest)


def windowed(delta: Tensor, density: float, gamma: float) -> Tensor:
    """The largest entries, without the very largest."""
    n = delta.numel()
    kept, top = int(density * n), int(gamma * n)
    first = max(0, n - kept - top)
    ranks = delta.abs().flatten().argsort().argsort().reshape(delta.shape)
    return delta * ((ranks >= first) & (ranks < first + kept))


def elected(deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool = True) -> Tensor:
    """The weighted mean of what has the sign of the weighted sum, or its sum."""
    weighted = torch.stack([w * delta for w, delta in zip(weights, deltas, strict=True)])
    agree = torch.sign(weighted) == torch.where(weighted.sum(0) >= 0, 1, -1)
    total = sum(w * mask for w, mask in zip(weights, agree, strict=True))
    return (weighted * agree).sum(0) / (torch.where(total == 0, 1, total) if normalize else 1)


def stocked(deltas: Sequence[Tensor]) -> Tensor:
    """model_stock with one angle for a whole tensor: the mean of the pairs' cosines; none, where a delta is 0."""
    if any(delta.norm() == 0 for delta in deltas):
        return torch.zeros_like(deltas[0])
    n, flat = len(deltas), [delta.flatten() for delta in deltas]
    cosines = [torch.cosine_similarity(one, other, dim=0) for one, other in combinations(flat, 2)]
    cosine = sum(cosines) / len(cosines)
    return n * cosine / (1 + (n - 1) * cosine) * sum(deltas) / n


def selected(deltas: Sequence[Tensor], share: float) -> Tensor:
    """sce: of the entries that differ most between the deltas, those with the sign of the sum, weighed by the means of
    their squares.
    """
    stack = torch.stack([*deltas])
    variance = stack.var(0, unbiased=False)
    kept = int(share * int((variance != 0).sum()))
    stack = stack * (variance >= variance.flatten().sort(descending=True).values[kept - 1])
    weights = stack.square().flatten(1).mean(1).reshape(-1, *[1] * deltas[0].ndim)
    weights = weights * (torch.sign(stack) == torch.where(stack.sum(0) >= 0, 1, -1))
    total = weights.sum(0)
    return (weights * stack).sum(0) / torch.where(total == 0, 1, total)
