from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from surgery.analysis.overlap import overlap
from surgery.errors import NumericalError
from surgery.ops.suppress_intruders import SuppressIntruders
from surgery.spectral.decomposer import Decomposer
from tests.strategies import normal, tuned, weight


def suppress(**keys: Any) -> SuppressIntruders:
    return SuppressIntruders.model_validate({"op": "suppress_intruders", "from": "base", **keys})


def applied(W: Tensor, b: Tensor, **keys: Any) -> Tensor:
    return suppress(**keys).apply(W, {"base": b}, Decomposer())


def intruded(rows: int = 40, cols: int = 30, seed: int = 0, size: float = 4.0) -> tuple[Tensor, Tensor]:
    """A matrix and its base, from which it differs by one strong random direction: an intruder."""
    generator = torch.Generator().manual_seed(seed)
    b = weight(generator, "decaying", rows, cols)
    u, v = normal(generator, rows), normal(generator, cols)
    return (b + size * torch.outer(u / u.norm(), v / v.norm())).float(), b.float()


def reference(W: Tensor, b: Tensor, head: int, threshold: float, scale: float) -> Tensor:
    """In float64, one direction after the other."""
    W, b = W.double(), b.double()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    A = torch.linalg.svd(b, full_matrices=False).U
    for j in range(head):
        if max(abs(float(a @ U[:, j])) for a in A.mT) < threshold:
            W = W + (scale - 1) * S[j] * torch.outer(U[:, j], Vh[j])
    return W


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.sampled_from([(40, 30), (30, 40)]), st.floats(0.3, 0.9), st.floats(0, 2))
def test_equals_the_formula(seed: int, shape: tuple[int, int], threshold: float, scale: float):
    """Whatever the threshold and the scale."""
    W, b = intruded(*shape, seed=seed)
    U = torch.linalg.svd(W.double(), full_matrices=False).U[:, :8]
    best = (torch.linalg.svd(b.double(), full_matrices=False).U.mT @ U).abs().amax(0)
    if (best - threshold).abs().min() > 1e-4:  # else rounding decides
        found = applied(W, b, head=8, threshold=threshold, scale=scale)
        assert (found - reference(W, b, 8, threshold, scale)).norm() < 1e-5 * W.norm()


def test_the_intruder_goes_and_the_base_comes_back():
    """What diff counts as intruders is gone afterwards, and little else: the base is nearer than before."""
    W, b = intruded()
    made = applied(W, b)

    def count(X: Tensor) -> int:
        A, B = (torch.linalg.svd(Y.double(), full_matrices=False).U for Y in (b, X))
        return overlap(A, B, 1).intruders(1)

    assert (count(W), count(made)) == (1, 0)
    assert (made - b).norm() < 0.5 * (W - b).norm()


def test_without_intruders_nothing_changes():
    """Bit by bit; so it is with a scale of 1, and with a threshold that nothing is below."""
    generator = torch.Generator().manual_seed(0)
    b = weight(generator, "steep", 40, 30)
    W = tuned(generator, b, 1e-3).float()
    assert torch.equal(applied(W, b.float(), head=2), W)
    W, b = intruded()
    assert torch.equal(applied(W, b, scale=1), W)
    assert torch.equal(applied(W, b, threshold=0), W)


def test_only_the_head_is_looked_at():
    """An intruder beyond it stays."""
    W, b = intruded(size=0.5)
    U = torch.linalg.svd(W.double(), full_matrices=False).U
    best = (torch.linalg.svd(b.double(), full_matrices=False).U.mT @ U).abs().amax(0)
    first = int((best < 0.5).nonzero()[0])
    assert first > 0
    assert torch.equal(applied(W, b, head=first), W)
    assert not torch.equal(applied(W, b, head=first + 1), W)


def test_a_base_of_zeros_knows_no_direction():
    """So every direction is an intruder, whatever vectors come out for the value 0."""
    W = torch.diag(torch.arange(9.0, 1, -1))
    made = applied(W, torch.zeros_like(W), head=3)
    assert torch.allclose(torch.linalg.svdvals(made)[:5], torch.linalg.svdvals(W)[3:], atol=1e-5)


def test_infinity_is_refused():
    """In either matrix."""
    W, b = intruded()
    b[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="`base` has 1 value"):
        applied(W, b)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"head": 0}, "found 0, so that no direction is looked at"),
        ({"threshold": 1.5}, "found `1.5`; expected a number between 0 and 1"),
        ({"scale": -1}, "expected 0 or more"),
    ],
)
def test_faults(keys: dict[str, Any], message: str):
    """Each is told."""
    with pytest.raises(ValidationError, match=message):
        suppress(**keys)
