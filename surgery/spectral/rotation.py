"""The direct rotation of one subspace onto another, applied to a matrix.

Let A and B (m x k) have orthonormal columns and A^T B = P diag(c) Q^T be the SVD, so that the columns of A P and B Q
are the principal vectors a_i, b_i at the angles theta_i, c_i = cos theta_i. The direct rotation turns each plane
(a_i, b_i) by theta_i, a_i onto b_i, and leaves the rest alone; of all orthogonal maps of span(A) onto span(B) it is the
nearest to the identity.

Let A^T R = 0. Within the plane R has only a component along w_i = (b_i - c_i a_i) / sin theta_i, of length
b_i^T R / sin theta_i, which turns into -sin theta_i a_i + c_i w_i. So R changes by
    (-sin theta_i a_i + (c_i - 1) w_i) b_i^T R / sin theta_i = -(a_i + b_i) / (1 + c_i) b_i^T R,
with no division by sin theta_i: stable for equal and for orthogonal vectors alike. With Z = P Q^T, H = Q diag(c) Q^T,
the polar decomposition A^T B = Z H, the sum over i is
    Q_U R = R - L B^T R,    L = (A Z + B) (I + H)^{-1}.

Source: Davis and Kahan 1970, The rotation of eigenvectors by a perturbation III, section 3 (direct rotation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.spectral.svd import svd

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.triplets import Triplets


def restore_rotated(W: Tensor, replaced: Triplets, restored: Triplets, values: Tensor) -> Tensor:
    """W' = U_b diag(S*) V_b^T + Q_U R Q_V^T with R = W - U diag(S) V^T, of W's shape, dtype and device.

    `replaced` are triplets (U, S, V) of W, `restored` as many of b, `values` S*; Q_U is the direct rotation of span(U)
    onto span(U_b), Q_V of span(V) onto span(V_b). Q_U R is orthogonal to U_b, so the factors of W' are orthonormal and
    its singular values are S* together with the values of W that stay. Where a principal angle is 90 degrees the
    direct rotation is not unique; one of them is taken. Raises NumericalError when no SVD of A^T B converges.
    """
    L, N = _turn(replaced.U, restored.U), _turn(replaced.V, restored.V)
    out = W.clone()
    out.addmm_(replaced.times(replaced.S), replaced.V.mT, alpha=-1)
    left = restored.U.mT @ out
    right = out @ restored.V
    # Q_U R Q_V^T = R - L (U_b^T R) - (R V_b - L (U_b^T R V_b)) N^T
    right.addmm_(L, left @ restored.V, alpha=-1)
    out.addmm_(L, left, alpha=-1)
    out.addmm_(right, N.mT, alpha=-1)
    return out.addmm_(restored.times(values), restored.V.mT)


def _turn(A: Tensor, B: Tensor) -> Tensor:
    """L = (A Z + B) (I + H)^{-1}, m x k."""
    P, c, Qh = svd((A.mT @ B).double())  # float64: float32 fails where the cosines crowd at 1
    inverse = Qh.mT / (1 + c) @ Qh
    L = A @ (P / (1 + c) @ Qh).to(A.dtype)
    return L.addmm_(B, inverse.to(A.dtype))
