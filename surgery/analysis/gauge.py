"""How much of the change of value and output projections is a gauge: a rotation of the inner space, without effect.

The value projection V (hd x d) of a key/value head and the output projections O_j (d_out x hd) of the query heads that
share it act as the products O_j V alone. For orthogonal R (hd x hd) the weights R V, O_j R^T are the same map. The bias
b of the value projection turns with it, as one more column of V: softmax weights sum to one, so attention passes
sum_t w_t (V x_t + b) = V (sum_t w_t x_t) + b on to O_j. (It is not so for query and key under rotary embeddings.)

The R that takes most of the change away minimises

    |R^T V' - V|_F^2 + sum_j |O'_j R - O_j|_F^2 = const - 2 tr(R^T M),    M = V' V^T + sum_j O'_j^T O_j,

and is P Q^T from the SVD M = P diag(s) Q^T. With the aligned V~ = R^T V', O~_j = O'_j R, and what is left,
dV = V~ - V and dO_j = O~_j - O_j, the function has changed by

    O'_j V' - O_j V = O~_j V~ - O_j V = dO_j V~ + O_j dV = [dO_j, O_j] [V~; dV]:

a product of two thin matrices. Its norm is that of the product of their triangular factors, with no difference of large
numbers.

Sources: Schönemann 1966, A generalized solution of the orthogonal Procrustes problem; arXiv 2509.12235, appendix (the
inner rotation of a two-matrix chain).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.analysis.change import relative_change
from surgery.spectral.procrustes import procrustes
from surgery.spectral.svd import svd


@dataclass(frozen=True, slots=True)
class ValueOutput:
    """Value and output projections of one attention module, as they are stored: y = W x.

    value (kv hd x d), output (d_out x heads hd), heads a multiple of kv: query head j uses key/value head
    j // (heads / kv); bias (kv hd) of the value projection, None for none, which is the same as 0. Floating, finite.
    """

    value: Tensor
    output: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class HeadGauge:
    """What changed in one key/value head, its bias and all its query heads; x = (V, O_1, O_2, ...) as one vector.

    change          |x' - x| / |x|
    explained       share of |x' - x|^2 that R takes away, 0 ... 1
    rotation        mean |angle| of R's eigenvalues, radians, 0 ... pi; a reflection counts as pi
    aligned_change  |x~ - x| / |x|, what R leaves
    remainder       |O'V' - OV|_F / |OV|_F over all query heads: the change of the function

    Where nothing changed `explained` is NaN and the others are 0. A ratio with 0 below is infinite unless what is above
    is 0.
    """

    change: float
    explained: float
    rotation: float
    aligned_change: float
    remainder: float


UNCHANGED = HeadGauge(0.0, math.nan, 0.0, 0.0, 0.0)


def gauge(before: ValueOutput, after: ValueOutput, head_dim: int) -> tuple[HeadGauge, ...]:
    """The gauge part of the change of every key/value head, in their order; see above.

    Both modules have the same shapes, of heads of `head_dim`. Computed in float64, one head at a time. A pure gauge
    leaves a remainder of the rounding of the weights: 2e-15 if they are float64, 5e-8 for float32, 3e-3 for bfloat16.
    Of a small change at random R explains (hd - 1) / 2 / (d + group d_out), its degrees of freedom. Where M is singular
    R is not unique, and `rotation` is that of the least one. Raises ValueError if shapes do not fit, NumericalError if
    no SVD converges.
    """
    kv, group = _heads(before, after, head_dim)
    return tuple(_head(before, after, head_dim, k, range(k * group, (k + 1) * group)) for k in range(kv))


def _heads(before: ValueOutput, after: ValueOutput, head_dim: int) -> tuple[int, int]:
    """The number of key/value heads, and of query heads for each of them."""
    value, output = before.value.shape, before.output.shape
    if value != after.value.shape or output != after.output.shape:
        raise ValueError(
            f"found value and output projections of {tuple(value)} and {tuple(output)} before, "
            f"{tuple(after.value.shape)} and {tuple(after.output.shape)} after; expected equal shapes"
        )
    kv, heads = value[0] // head_dim, output[1] // head_dim
    if not kv or value[0] % head_dim or output[1] % head_dim or heads % kv:
        raise ValueError(
            f"found a value projection of {tuple(value)} and an output projection of {tuple(output)}; expected whole "
            f"heads of {head_dim}, as many query heads for each key/value head"
        )
    return kv, heads // kv


def _head(before: ValueOutput, after: ValueOutput, head_dim: int, k: int, queries: range) -> HeadGauge:
    V1, V2 = _value(before, head_dim, k), _value(after, head_dim, k)
    M = V2 @ V1.mT
    size, change = _square(V1), _square(V2 - V1)
    for O1, O2 in _outputs(before, after, head_dim, queries):
        M.addmm_(O2.mT, O1)
        size += _square(O1)
        change += _square(O2 - O1)
    if not change:
        return UNCHANGED
    R = procrustes(M)
    aligned = R.mT @ V2
    dV = aligned - V1
    left, function, function_change = _square(dV), 0.0, 0.0
    K = _triangular(torch.cat([aligned, dV]).mT)
    K_before = _triangular(V1.mT)
    for O1, O2 in _outputs(before, after, head_dim, queries):
        dO = O2 @ R - O1
        left += _square(dO)
        L = _triangular(torch.cat([dO, O1], 1))
        function += _square(L[:, head_dim:] @ K_before.mT)
        function_change += _square(L @ K.mT)
    return HeadGauge(
        change=relative_change(math.sqrt(size), math.sqrt(change)),
        explained=min(1.0, max(0.0, 1 - left / change)),
        rotation=_mean_angle(R),
        aligned_change=relative_change(math.sqrt(size), math.sqrt(left)),
        remainder=relative_change(math.sqrt(function), math.sqrt(function_change)),
    )


def _value(side: ValueOutput, head_dim: int, k: int) -> Tensor:
    """[V, b] of key/value head k (hd x (d + 1), float64)."""
    rows = slice(k * head_dim, (k + 1) * head_dim)
    V = side.value[rows].double()
    return torch.cat([V, V.new_zeros(head_dim, 1) if side.bias is None else side.bias[rows, None].double()], 1)


def _outputs(before: ValueOutput, after: ValueOutput, head_dim: int, queries: range) -> Iterator[tuple[Tensor, Tensor]]:
    """O_j and O'_j (d_out x hd, float64) of the query heads, one at a time."""
    for j in queries:
        columns = slice(j * head_dim, (j + 1) * head_dim)
        yield before.output[:, columns].double(), after.output[:, columns].double()


def _square(X: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(X))
    return norm * norm


def _triangular(X: Tensor) -> Tensor:
    """The triangular factor of X: |X Y|_F = |R Y|_F for every Y."""
    R: Tensor = torch.linalg.qr(X, mode="r").R
    return R


def _mean_angle(R: Tensor) -> float:
    """The mean |angle| of the eigenvalues e^{i theta} of an orthogonal R (radians).

    R - I and R + I are normal, with the singular values 2 |sin(theta / 2)| and 2 |cos(theta / 2)|.
    """
    unit = torch.eye(len(R), dtype=R.dtype, device=R.device)
    sines, cosines = svd(R - unit)[1], svd(R + unit)[1]
    return float(2 * torch.atan2(sines.flip(0), cosines).mean())
