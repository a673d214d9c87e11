"""The rotation that brings one matrix nearest to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.spectral.svd import svd

if TYPE_CHECKING:
    from torch import Tensor

# Singular values below this part of the largest count as 0: in float64 rounding turns their directions by 1e-16 / 1e-10
# of a radian at most, and what the rotation of all others gives away is 1e-10 of the whole.
NEGLIGIBLE = 1e-10


def procrustes(M: Tensor) -> Tensor:
    """The orthogonal R (n x n, float64) that maximises tr(R^T M), for finite M = A^T B (n x n, float64).

    It minimises |A R - B|_F, since |A R - B|_F^2 = |A|_F^2 + |B|_F^2 - 2 tr(R^T M), and is P Q^T from the SVD M = P
    diag(s) Q^T: with the orthogonal Z = P^T R Q, tr(R^T M) = tr(Z^T diag(s)) = sum_i s_i Z_ii <= sum_i s_i, reached by
    Z = 1. A reflection, det R = -1, is allowed.

    Where M is singular R is free on a subspace, and is there what is nearest to leaving all as it is: P_0 Z Q_0^T with
    the Z that maximises its trace. So M = 0 gives the identity, and rounding does not decide over R. Raises
    NumericalError where no SVD converges. Source: Schoenemann 1966, A generalized solution of the orthogonal Procrustes
    problem; Golub and Van Loan, Matrix Computations, 4th edition, section 6.4.1.
    """
    P, s, Qh = svd(M)
    rank = int((s > NEGLIGIBLE * s[:1]).sum())
    R = P[:, :rank] @ Qh[:rank]
    if rank < len(s):
        free, into = P[:, rank:], Qh[rank:]
        X, _, Yh = svd(free.mT @ into.mT)
        R += free @ (X @ Yh) @ into
    return R
