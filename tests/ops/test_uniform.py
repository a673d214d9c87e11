from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from surgery.ops.uniform import Uniform

CPU = torch.device("cpu")
MANY = 1 << 16


def numbers(first: int = 0, count: int = MANY, *, seed: int = 0, role: str = "a", name: str = "w") -> torch.Tensor:
    """u of so many elements, float64."""
    return 0.5 + Uniform(seed, role, name).bits(first, (count,), CPU).double() / 2**32


ALL = numbers()


@given(st.integers(0, 3000), st.integers(0, 600))
def test_independent_of_pieces(first: int, count: int):
    """Those of a piece are the same part of those of the whole, wherever it begins."""
    assert torch.equal(numbers(first, count), ALL[first : first + count])


def drawn(seed: int = 0, role: str = "a", name: str = "w") -> np.ndarray:
    """u of the first elements, from numpy's generator, seeded with the hash of what they are for."""
    key = int.from_bytes(blake3(f"{seed}\0{role}\0{name}".encode()).digest(length=16), "little")
    return 0.5 + np.random.PCG64DXSM(key).random_raw(MANY // 2).view(np.int32) / 2**32


def test_equals_the_generator_read_from_its_start():
    """Each 32 of its bits make a number."""
    assert np.array_equal(ALL.numpy(), drawn())


def test_shape():
    """Row by row."""
    found = Uniform(0, "a", "w").bits(7, (3, 5), CPU)
    assert found.dtype == torch.int32
    assert torch.equal(0.5 + found.double() / 2**32, ALL[7:22].view(3, 5))


def test_seed_role_and_name_give_other_numbers():
    """Uncorrelated ones: below 5 standard errors."""
    for other in (numbers(seed=1), numbers(role="b"), numbers(name="v"), ALL.roll(1)):
        correlation = float(torch.corrcoef(torch.stack([ALL, other]).double())[0, 1])
        assert abs(correlation) < 5 / math.sqrt(MANY)


def test_distribution():
    """In [0, 1), and in each of 64 equal parts as many as a binomial distribution allows, to 5 standard deviations."""
    assert 0 <= ALL.min() < ALL.max() < 1
    counts = torch.histc(ALL, 64, 0, 1)
    expected = MANY / 64
    assert float((counts - expected).abs().max()) < 5 * math.sqrt(expected * (1 - 1 / 64))


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.01, 0.3, 0.5, 1 - 2**-24])
def test_below(probability: float):
    """It is the comparison with the numbers of 32 bits, at any offset."""
    found = Uniform(1, "sft", "x").below(probability, 13, (50, 20), CPU)
    expected = drawn(1, "sft", "x")[13 : 13 + 1000].reshape(50, 20) < probability
    assert found.dtype == torch.int8
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("probability", [2**-10, 0.3])
def test_below_keeps_the_share(probability: float):
    """As many as a binomial distribution allows, to 5 standard deviations."""
    count = 1 << 20
    kept = float(Uniform(2, "a", "w").below(probability, 5, (count,), CPU).sum())
    assert abs(kept - count * probability) < 5 * math.sqrt(count * probability * (1 - probability))
