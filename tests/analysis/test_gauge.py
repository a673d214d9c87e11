from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from surgery.analysis.gauge import HeadGauge, ValueOutput, gauge
from tests.strategies import normal, orthonormal

NOTHING = HeadGauge(0, math.nan, 0, 0, 0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def module(kv: int, group: int, hd: int, d: int, d_out: int, bias: bool = True, seed: int = 0) -> ValueOutput:
    """Random projections, float64."""
    g = generator(seed)
    value, output = normal(g, kv * hd, d) / d**0.5, normal(g, d_out, kv * group * hd) / d_out**0.5
    return ValueOutput(value, output, normal(g, kv * hd) if bias else None)


def inner(side: ValueOutput, Rs: list[Tensor], inverses: list[Tensor] | None = None) -> ValueOutput:
    """R V, R b, O R^T (or O R^-1) for the R of every key/value head."""
    hd, kv = len(Rs[0]), len(Rs)
    group = side.output.shape[1] // (kv * hd)
    R = torch.block_diag(*Rs)
    back = torch.block_diag(*[X for X in (inverses or [R.mT for R in Rs]) for _ in range(group)])
    return ValueOutput(R @ side.value, side.output @ back, None if side.bias is None else R @ side.bias)


def moved(side: ValueOutput, size: float, seed: int = 5) -> ValueOutput:
    """The projections and the bias with independent normal numbers added."""
    g = generator(seed)
    value, output = (W + size * W.norm() / W.numel() ** 0.5 * normal(g, *W.shape) for W in (side.value, side.output))
    return ValueOutput(value, output, None if side.bias is None else side.bias + size * normal(g, *side.bias.shape))


def by_definition(before: ValueOutput, after: ValueOutput, hd: int, k: int) -> HeadGauge:
    """All figures of head k from dense matrices: V with its bias as a column, SciPy's Procrustes on the stack."""
    kv = len(before.value) // hd
    group = before.output.shape[1] // hd // kv
    inputs, outputs = [], []
    for side in (before, after):
        bias = torch.zeros(kv * hd, dtype=torch.float64) if side.bias is None else side.bias
        inputs.append(torch.cat([side.value, bias[:, None]], 1)[k * hd : (k + 1) * hd].numpy())
        heads = [side.output[:, j * hd : (j + 1) * hd] for j in range(kv * group) if j // group == k]
        outputs.append(torch.cat(heads, 0).numpy())  # one below the other: |.|_F of the products over all heads
    (V1, V2), (O1, O2) = inputs, outputs
    x1, x2 = np.concatenate([V1.T, O1]), np.concatenate([V2.T, O2])
    R, _ = orthogonal_procrustes(x2, x1)
    change, left = np.linalg.norm(x2 - x1), np.linalg.norm(x2 @ R - x1)
    return HeadGauge(
        change=change / np.linalg.norm(x1),
        explained=1 - left**2 / change**2,
        rotation=float(np.mean(np.abs(np.angle(np.linalg.eigvals(R))))),
        aligned_change=left / np.linalg.norm(x1),
        remainder=np.linalg.norm(O2 @ V2 - O1 @ V1) / np.linalg.norm(O1 @ V1),
    )


def close(found: HeadGauge, expected: HeadGauge, tolerance: float) -> bool:
    return all(
        getattr(found, name) == pytest.approx(getattr(expected, name), abs=tolerance) for name in HeadGauge.__slots__
    )


SHAPES = [(2, 3, 8, 24, 20), (1, 1, 4, 12, 10), (3, 1, 5, 5, 5), (2, 2, 8, 3, 3), (2, 2, 1, 6, 4), (1, 1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_figures_are_those_of_their_definitions(shape: tuple[int, int, int, int, int], bias: bool, size: float) -> None:
    """Any change, grouped heads, narrow and wide: as dense matrices and SciPy's Procrustes have it, head by head."""
    before = module(*shape, bias=bias)
    after = moved(before, size)
    found = gauge(before, after, shape[2])
    assert len(found) == shape[0]
    for k, head in enumerate(found):
        assert close(head, by_definition(before, after, shape[2], k), 1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_gauge_is_explained_wholly(shape: tuple[int, int, int, int, int], bias: bool) -> None:
    """A random orthogonal R for each key/value head: all is explained, the function has not changed."""
    kv, _, hd = shape[:3]
    before = module(*shape, bias=bias)
    Rs = [orthonormal(generator(k), hd, hd) for k in range(kv)]
    for R, head in zip(Rs, gauge(before, inner(before, Rs), hd), strict=True):
        if not head.change:  # R = 1
            assert head == NOTHING
            continue
        assert head.explained == pytest.approx(1, abs=1e-12)
        assert head.aligned_change < 1e-13
        assert head.remainder < 1e-13
        expected = np.mean(np.abs(np.angle(np.linalg.eigvals(R.numpy()))))
        assert head.rotation == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("theta", [1e-9, 1e-3, 0.5, math.pi / 2, math.pi - 1e-9, math.pi])
def test_rotation_is_the_mean_angle(theta: float) -> None:
    """A turn by theta in one plane of six dimensions: two of six eigenvalues, a third of theta."""
    R = torch.eye(6, dtype=torch.float64)
    R[0, 0] = R[3, 3] = math.cos(theta)
    R[0, 3], R[3, 0] = -math.sin(theta), math.sin(theta)
    before = module(1, 2, 6, 20, 20)
    assert gauge(before, inner(before, [R]), 6)[0].rotation == pytest.approx(theta / 3, abs=1e-14)


def test_reflection_is_a_gauge() -> None:
    """One direction of the inner space turned round, det R = -1: explained, with the angle pi for one of four."""
    before = module(1, 1, 4, 20, 20)
    R = torch.diag(torch.tensor([1.0, -1, 1, 1], dtype=torch.float64))
    head = gauge(before, inner(before, [R]), 4)[0]
    assert head.explained == pytest.approx(1, abs=1e-12)
    assert head.rotation == pytest.approx(math.pi / 4, abs=1e-12)


def test_bias_is_part_of_the_gauge() -> None:
    """A bias that does not turn with the rest changes the function; one that does, does not."""
    before = module(2, 2, 8, 24, 20)
    turned = inner(before, [orthonormal(generator(k), 8, 8) for k in range(2)])
    assert max(head.remainder for head in gauge(before, turned, 8)) < 1e-13
    left_out = ValueOutput(turned.value, turned.output, before.bias)
    for k, head in enumerate(gauge(before, left_out, 8)):
        assert head.remainder > 0.1
        assert close(head, by_definition(before, left_out, 8, k), 1e-10)


def test_no_bias_is_a_bias_of_0() -> None:
    """None and zeros are the same, on either side; a bias that appears is a change."""
    before, after = module(2, 2, 4, 9, 8, bias=False), moved(module(2, 2, 4, 9, 8, bias=False), 0.1)
    zero = ValueOutput(before.value, before.output, torch.zeros(8, dtype=torch.float64))
    assert gauge(before, after, 4) == gauge(zero, after, 4)
    assert gauge(before, zero, 4) == (NOTHING, NOTHING)
    other = ValueOutput(before.value, before.output, torch.ones(8, dtype=torch.float64))
    assert all(head.remainder > 0 and head.change > 0 for head in gauge(before, other, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_unchanged_head_is_exactly_0(dtype: torch.dtype) -> None:
    """Equal modules give zeros, not rounding; so does the head that did not change beside one that did."""
    before = ValueOutput(*(X.to(dtype) for X in (module(2, 2, 4, 9, 8).value, module(2, 2, 4, 9, 8).output)))
    same = ValueOutput(before.value.clone(), before.output.clone())
    assert gauge(before, same, 4) == (NOTHING, NOTHING)
    same.value[5] += 1
    assert gauge(before, same, 4)[0] == NOTHING
    same.value[5] = before.value[5]
    same.output[:, 6] += 1  # query head 1, of key/value head 0
    found = gauge(before, same, 4)
    assert found[0].remainder > 0
    assert found[1] == NOTHING


def test_zero_projections_are_zeros_or_infinite() -> None:
    """From zero weights to zero weights: zeros; to others: infinite; a zero product that stays zero: remainder 0."""
    zero = ValueOutput(torch.zeros(4, 6), torch.zeros(5, 8))
    ones = ValueOutput(torch.ones(4, 6), torch.ones(5, 8))
    assert gauge(zero, zero, 4) == (NOTHING,)
    grown = gauge(zero, ones, 4)[0]
    assert grown.change == grown.aligned_change == grown.remainder == math.inf
    assert grown.explained == pytest.approx(0, abs=1e-12)
    gone = gauge(ones, zero, 4)[0]
    assert (gone.change, gone.remainder) == pytest.approx((1, 1))
    silent = gauge(ValueOutput(ones.value, zero.output), ValueOutput(2 * ones.value, zero.output), 4)[0]
    assert silent.remainder == 0
    assert silent.change == pytest.approx(1)


@pytest.mark.parametrize("size", [1e-9, 1e-5, 0.1])
def test_remainder_does_not_cancel(size: float) -> None:
    """A small change on top of a large gauge is measured to its own digits, down to 1e-9 of the weights."""
    before = module(2, 2, 8, 24, 20)
    there = moved(before, size)
    Rs = [orthonormal(generator(k), 8, 8) for k in range(2)]
    for direct, behind in zip(gauge(before, there, 8), gauge(before, inner(there, Rs), 8), strict=True):
        assert behind.remainder == pytest.approx(direct.remainder, rel=1e-5)
        assert behind.aligned_change == pytest.approx(direct.aligned_change, rel=1e-5)


def test_nothing_explained_is_not_below_0() -> None:
    """All weights doubled: R = 1, and explained is 0, not a rounding error below it."""
    for seed in range(5):
        before = module(2, 2, 4, 9, 8, bias=False, seed=seed)
        for head in gauge(before, ValueOutput(2 * before.value, 2 * before.output), 4):
            assert 0 <= head.explained < 1e-13
            assert (head.change, head.aligned_change, head.remainder) == pytest.approx((1, 1, 3))


def test_other_inner_maps_are_no_gauge_for_rotations_yet_leave_the_function() -> None:
    """A scale on the inner space, undone behind it, is not explained by a rotation; its remainder is still 1e-15."""
    before = module(1, 2, 8, 24, 20)
    D = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    head = gauge(before, inner(before, [D.diag()], [(1 / D).diag()]), 8)[0]
    assert head.explained < 0.1
    assert head.aligned_change > 0.1
    assert head.remainder < 1e-14


def test_random_change_is_explained_by_chance() -> None:
    """Of a small random change R takes its degrees of freedom: (hd - 1) / 2 / (d + group d_out)."""
    before = module(4, 2, 16, 60, 50, bias=False)
    found = gauge(before, moved(before, 0.01), 16)
    assert np.mean([head.explained for head in found]) == pytest.approx(7.5 / 160, rel=0.15)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from((0.0, 1e-6, 0.1, 10.0)),
    st.integers(0, 2**31 - 1),
    st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
)
def test_figures_are_bounded(shape: tuple[int, int, int, int, int], size: float, seed: int, dtype: torch.dtype) -> None:
    """For any shape and change: aligned_change <= change, explained in [0, 1], rotation in [0, pi]."""
    before = module(*shape, seed=seed)
    sides = [
        ValueOutput(side.value.to(dtype), side.output.to(dtype), None if side.bias is None else side.bias.to(dtype))
        for side in (before, moved(before, size))
    ]
    for head in gauge(sides[0], sides[1], shape[2]):
        assert 0 <= head.aligned_change <= head.change * (1 + 1e-9) + 1e-14
        assert 0 <= head.explained <= 1 if head.change else math.isnan(head.explained)
        assert 0 <= head.rotation <= math.pi + 1e-12
        assert 0 <= head.remainder < math.inf


@pytest.mark.parametrize(
    ("value", "output", "head_dim"),
    [((8, 9), (8, 16), 3), ((8, 9), (8, 16), 16), ((8, 9), (7, 12), 4), ((8, 9), (7, 18), 4)],
)
def test_shapes_are_whole_heads(value: tuple[int, int], output: tuple[int, int], head_dim: int) -> None:
    """Rows or columns that are not whole heads, none at all, and heads that cannot be shared out are refused."""
    side = ValueOutput(torch.ones(value), torch.ones(output))
    found = rf"value projection of \({value[0]}, {value[1]}\) .* output projection of \({output[0]}, {output[1]}\)"
    with pytest.raises(ValueError, match=f"{found}; expected whole heads of {head_dim}"):
        gauge(side, side, head_dim)


def test_shapes_are_equal() -> None:
    """Modules of different shapes are refused, with both shapes."""
    with pytest.raises(
        ValueError, match=r"\(8, 9\) and \(8, 16\) before, \(8, 9\) and \(7, 16\) after; expected equal"
    ):
        gauge(module(2, 2, 4, 9, 8), module(2, 2, 4, 9, 7), 4)


def test_arguments_are_left_alone() -> None:
    """Neither module is changed."""
    before = module(2, 2, 4, 9, 8)
    after = moved(before, 0.1)
    given = (before.value, before.output, before.bias, after.value, after.output, after.bias)
    kept = [X.clone() for X in given if X is not None]
    gauge(before, after, 4)
    assert all(torch.equal(X, Y) for X, Y in zip(given, kept, strict=True) if X is not None)
