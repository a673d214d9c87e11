"""Matrices that the tests share: hypothesis strategies for small ones, spectra as trained weights have them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthonormal(generator: torch.Generator, rows: int, cols: int) -> Tensor:
    """A random matrix with orthonormal columns, rows >= cols, float64."""
    Q, _ = torch.linalg.qr(normal(generator, rows, cols))
    return Q


def with_values(generator: torch.Generator, rows: int, cols: int, values: Tensor) -> Tensor:
    """A random matrix with the given singular values, float64."""
    k = len(values)
    return (orthonormal(generator, rows, k) * values) @ orthonormal(generator, cols, k).mT


def spectrum(kind: str, n: int) -> Tensor:
    """n singular values, descending, of the kind that `kind` names; float64."""
    i = torch.arange(n, dtype=torch.float64)
    values = {
        "decaying": torch.exp(-1.5 * i / n) / torch.sqrt(1 + 20 * i / n),  # as in trained language models
        "power law": (1 + i) ** -0.7,
        "steep": 10 ** (-6 * i / n),
        "outlier": torch.where(i == 0, 100.0, 1 - 0.9 * i / n),
        "equal": torch.ones(n, dtype=torch.float64),
        "low rank": torch.where(i < n // 2, torch.exp(-4 * i / n), 0.0),
    }
    return values[kind]


SPECTRA = ("decaying", "power law", "steep", "outlier", "flat")


def weight(generator: torch.Generator, kind: str, rows: int, cols: int) -> Tensor:
    """A random matrix with a spectrum of the named kind, or `flat`: of independent normal numbers. Float64."""
    if kind == "flat":
        return normal(generator, rows, cols) / max(rows, cols) ** 0.5
    return with_values(generator, rows, cols, spectrum(kind, min(rows, cols)))


def tuned(generator: torch.Generator, base: Tensor, change: float) -> Tensor:
    """`base` plus a random matrix of the relative Frobenius norm `change`."""
    E = normal(generator, *base.shape)
    return base + change * base.norm() / E.norm() * E


@st.composite
def pairs(draw: Any, max_side: int = 24) -> tuple[Tensor, Tensor]:
    """Two small float32 matrices of one shape: a base, often with a poor spectrum, and its tuned twin, near or far."""
    rows, cols = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    kind = draw(st.sampled_from(("flat", "decaying", "equal", "low rank")))
    base = weight(generator, kind, rows, cols)
    change = draw(st.sampled_from((0.0, 0.01, 0.3, 10.0)))
    return base.float(), tuned(generator, base, change).float()
