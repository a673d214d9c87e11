"""How the singular vectors of two matrices lie to each other, on one side: left or right.

Let A (m x h) and B (m x h') have orthonormal columns, the leading singular vectors before and after. All figures come
from C = A^T B and from the part of B outside span(A), of which only a triangular factor is kept:

    B_c = A C[:, :c] + Q T,    A^T Q = 0,  Q^T Q = I,  T upper triangular (c x c).

In the basis [A, Q] the leading r columns of A are unit vectors, and those of B are [C[:, :r]; T[:, :r]]; so for every
r <= c the sines and cosines of the principal angles between the two leading-r subspaces are singular values of small
matrices:

    sin theta = singular values of [C[r:, :r]; T[:r, :r]],    cos theta = singular values of C[:r, :r].

A small angle comes from its sine, one near 90 degrees from its cosine: the arc cosine of a number near 1 has no digits
below sqrt(eps), 1e-8 in float64 and 3e-4 in float32.

Source: Björck and Golub 1973, Numerical methods for computing angles between linear subspaces, section 3 (sine and
cosine); intruders: see `surgery.spectral.intruders`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.spectral.cost import ROW_BLOCK
from surgery.spectral.intruders import INTRUDER_COSINE, are_intruders, best_cosines
from surgery.spectral.svd import LinAlgError, svd


@dataclass(frozen=True, slots=True)
class Overlap:
    """C = A^T B (h x h') and T (c x c, upper triangular), see above; in the dtype of the vectors.

    Methods return float64 tensors on the vectors' device.
    """

    C: Tensor
    T: Tensor

    def angles(self, r: int) -> Tensor:
        """The r principal angles between the leading-r subspaces (r, radians, ascending, 0 ... pi/2); r <= c.

        theta_i = atan2(sin_i, cos_i), the i-th smallest sine with the i-th largest cosine. As d theta = cos d sin - sin
        d cos, the sine alone counts at 0 and the cosine alone at 90 degrees: Björck and Golub's choice between the two,
        without a seam at 45 degrees. Errors are 1e-15 in float64; in float32 see `comparison.RESOLUTION`. Where r is
        the dimension m all angles are 0. Raises NumericalError when no SVD converges.
        """
        assert r <= len(self.T), f"angles of rank {r} from an overlap of {len(self.T)} columns"
        C = self.C[:, :r].double()
        sines = _singular_values(torch.cat([C[r:], self.T[:r, :r].double()]))
        cosines = _singular_values(C[:r])
        return torch.atan2(sines.flip(0), cosines)

    def matching(self) -> Tensor:
        """|cos| between a_i and b_i (min(h, h')), at most 1."""
        return self.C.diagonal().abs().double().clamp_max(1)

    def best(self) -> Tensor:
        """max_i |cos| between a_i and b_j for each j (h'), at most 1: how well one earlier direction meets b_j.

        A lower bound where A is not complete (h < m): the best match may be among the directions that are not known.
        """
        return best_cosines(self.C)

    def intruders(self, r: int, threshold: float = INTRUDER_COSINE) -> int:
        """How many of b_1 ... b_r no a_i meets with |cos| >= threshold; an upper bound where A is not complete."""
        return int(are_intruders(self.C[:, :r], threshold).sum())


def overlap(A: Tensor, B: Tensor, columns: int) -> Overlap:
    """The overlap of A (m x h) and B (m x h'), both with orthonormal columns, of one dtype, on one device.

    `columns` <= min(h, h') is c, the largest rank whose angles are wanted. The products are computed in the dtype of
    the vectors, the residual B_c - A C and its QR factorisation in blocks of rows. Where A is a complete basis (h = m)
    the residual is 0, and not computed. Arithmetic: 2 m h h' + 2 m h c + 2 m c^2.
    """
    m, h = A.shape
    assert columns <= min(h, B.shape[1]), f"{columns} columns of bases of {h} and {B.shape[1]}"
    C = A.mT @ B
    if h == m:
        return Overlap(C, A.new_zeros(columns, columns))
    T = A.new_zeros(0, columns)
    for i in range(0, m, ROW_BLOCK):
        rows = slice(i, i + ROW_BLOCK)
        R = torch.addmm(B[rows, :columns], A[rows], C[:, :columns], alpha=-1)
        T = torch.linalg.qr(torch.cat([T, R]), mode="r").R
    return Overlap(C, T)


def principal_angles(A: Tensor, B: Tensor) -> Tensor:
    """The principal angles between the spans of A and B, both m x r with orthonormal columns.

    (r, radians, ascending, float64); accuracy and degenerate cases as of `Overlap.angles`.
    """
    r = A.shape[1]
    return overlap(A, B, r).angles(r)


def _singular_values(X: Tensor) -> Tensor:
    """The singular values of X (m x n, m >= n, float64), descending; without vectors where LAPACK manages."""
    try:
        values: Tensor = torch.linalg.svdvals(X)
    except LinAlgError:
        return svd(X)[1]
    return values
