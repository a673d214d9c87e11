from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surgery.ops.magnitudes import Magnitudes, between
from surgery.ops.whole import Piece, Whole
from surgery.spectral.decomposer import Decomposer


def whole(*tensors: Tensor, elements: int) -> Whole:
    """Of several vectors, in pieces."""

    def pieces() -> Iterator[Piece]:
        for first in range(0, len(tensors[0]), elements):
            parts = {str(i): x[first : first + elements] for i, x in enumerate(tensors)}
            yield Piece(parts["0"], parts, first, Decomposer())

    return Whole("w", tuple(tensors[0].shape), pieces)


def found(*tensors: Tensor, ranks: list[list[int]], elements: int = 100) -> list[list[float]]:
    """The magnitudes of these ranks."""
    return Magnitudes(whole(*tensors, elements=elements), lambda piece: list(piece.sources.values())).largest(ranks)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50),
    st.integers(1, 60),
    st.data(),
)
def test_equals_the_sorted_list(values: list[float], elements: int, data: st.DataObject):
    """Exactly, for any float32, subnormal or 0 or the largest, with ties, in any pieces, and for several ranks."""
    ranks = data.draw(st.lists(st.integers(1, len(values)), max_size=4))
    expected = sorted(map(abs, values), reverse=True)
    assert found(torch.tensor(values), ranks=[ranks], elements=elements) == [[expected[k - 1] for k in ranks]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_between(dtype: torch.dtype):
    """Both bounds are inside; what is no number stays none, and infinity is not taken for a bounded number."""
    x = torch.tensor([0.0, 1.0, -2.0, 2.0 + 2.0**-22, 3.0, -4.0, torch.nan, torch.inf], dtype=dtype)
    assert between(x, 2.0, 3.0)[:-2].tolist() == [0, 0, -2, 2 + 2.0**-22, 3, 0]
    assert between(x, 0.0, 2.0)[:-2].tolist() == [0, 1, -2, 0, 0, 0]
    assert between(x, 2.0 + 2.0**-22)[:-2].tolist() == [0, 0, 0, 2 + 2.0**-22, 3, -4]
    assert not between(x, 2.0, 3.0)[-2:].isfinite().any()
    assert torch.equal(between(x, 0.0)[:-2], x[:-2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_tensors_at_once(dtype: torch.dtype):
    """Each has its own ranks, or none; magnitudes of float64 are those of float32."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(3000, generator=generator, dtype=dtype) * 10.0**-i for i in range(3))
    a[:1000] = a[0]
    ordered = [x.float().abs().sort(descending=True).values for x in (a, b, c)]
    expected = [[ordered[0][k - 1].item() for k in (1, 700, 1400)], [], [ordered[2][10].item()]]
    assert found(a, b, c, ranks=[[1, 700, 1400], [], [11]]) == expected


def test_what_is_not_zero_is_counted():
    """Minus 0 is 0, and so is what float32 can hardly hold."""
    x = torch.tensor([0.0, -0.0, 1e-41, 1e-40, -3.0, 2.0])
    assert Magnitudes(whole(x, elements=2), lambda piece: [piece.W]).nonzero == [3]


def test_infinity_is_the_largest():
    """A broken checkpoint is reported by the executor, not here."""
    assert found(torch.tensor([1.0, -torch.inf, 3.0]), ranks=[[1, 2]]) == [[float("inf"), 3.0]]
