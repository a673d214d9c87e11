"""The leading eigenpairs of a symmetric matrix by block Lanczos iteration.

From b random orthonormal columns Q_1 on, with A_j = Q_j^T G Q_j and a QR factorisation for the last term,

    G Q_j = Q_{j-1} B_{j-1}^T + Q_j A_j + Q_{j+1} B_j.

On span(Q_1 ... Q_j), of dimension m = j b, G acts as the block tridiagonal matrix T of the A_i and B_i. With
T z = theta z the Ritz vector q = [Q_1 ... Q_j] z has the residual |G q - theta q| = |B_j z_j|, z_j the last b entries
of z: known without q. Converged vectors would come back with the rounding errors; hence every block is orthogonalised
against the two before it and then against all, and once more where little of it is left.

Cost: 2 n^2 m for the products, 2 n m^2 for the orthogonality, and three or four eigendecompositions of T. A twentieth
of the eigenvectors of a weight matrix takes m = 0.3-0.45 n.

Convergence: s is the number of leading pairs with residuals up to TOLERANCE theta_1, the rounding errors of a float32
eigh. The part of an eigenvector i < s outside of their span is then below TOLERANCE theta_1 / (theta_i - theta_s), as
with eigh; and s is enough when theta_s is so far down that theta_1 <= kappa (theta_head - theta_s), the condition of
route 1 of `triplets`. Those beyond s, not yet converged, can only widen the span.

References: Golub and Underwood, The block Lanczos method for computing eigenvalues, 1977; Golub and Van Loan, Matrix
Computations, 4th ed., section 10.3; Saad, Numerical Methods for Large Eigenvalue Problems, 2nd ed., chapter 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Columns of a block, below and from SMALL on. Small blocks reach a high degree in a small space, large ones run faster:
# with blocks of 8, 16, 32, 48 n = 2048 takes m = 0.35, 0.40, 0.50, 0.59 n and 0.21, 0.14, 0.16, 0.20 s without T.
SMALL_BLOCK, SMALL, BLOCK = 8, 1536, 16
# Bounds on m, and on how far ahead of the present m the end may be expected, as parts of n. At 0.5 n the decompositions
# of T cost about as much as the iteration, both together half of a full eigh.
LARGEST_SPACE, PATIENCE = 0.6, 0.25
# Residuals of the eigenvectors that a float32 eigh gives, relative to theta_1: 10-20 eps32, for n = 576 as for 2048.
TOLERANCE = 16 * 2.0**-24
# Less than this part of theta_1 left in some column: orthogonalised again.
CANCELLED = 0.1
SEED = 0


def leading_eigenpairs(G: Tensor, head: int, most: int, kappa: float) -> tuple[Tensor, Tensor] | None:
    """The leading `most` eigenvalues of G, ascending, and their eigenvectors as columns, for the first `head` of them.

    G (n x n, symmetric, positive semidefinite, finite, not zero), 1 <= head < most <= n. Converged are the pairs up to
    the first with theta_1 <= kappa (theta_head - theta), see above; none need be if even theta_most does not meet this.
    None when the space becomes too large, or when as many eigenvalues agree as a block has columns, since then it may
    have missed others. Starts from constant numbers: equal bits for equal G and number of threads.
    """
    n = G.shape[0]
    b = BLOCK if n >= SMALL else SMALL_BLOCK
    limit = int(LARGEST_SPACE * n) // b * b
    if limit < most + b:
        return None
    basis, T = G.new_empty(limit + b, n), G.new_zeros(limit + b, limit + b)
    start = torch.randn(n, b, generator=torch.Generator().manual_seed(SEED))
    basis[:b] = torch.linalg.qr(start.to(G)).Q.mT
    before: tuple[int, int] | None = None
    check = max(most + b, n // 5)
    for m in range(b, limit + 1, b):
        B = _extend(G, basis, T, m, b)
        if m < check:
            continue
        ascending, Z = torch.linalg.eigh(T[:m, :m])
        theta, Z = ascending.flip(0)[:most], Z[:, -most:].flip(1)
        residuals = torch.linalg.vector_norm(B @ Z[-b:], dim=0, dtype=torch.float64)
        s = int((residuals <= TOLERANCE * theta[0]).long().cumprod(0).sum())
        wanted = int((theta > theta[head - 1] - theta[0] / kappa).sum()) + 1
        # Ritz values grow with m, the lower ones more: gaps shrink, and what fails by a factor of 2 will not recover.
        hopeless = bool(theta[0] > 2 * kappa * (theta[head - 1] - theta[-1]))
        if hopeless or s >= min(wanted, most):
            spread = theta[: max(wanted - b, 0)] - theta[b - 1 : max(wanted, b) - 1]
            if not hopeless and bool((spread <= 4 * TOLERANCE * theta[0]).any()):
                return None
            return ascending[-most:], basis[:m].mT @ Z.flip(1)
        # The first one, in units of the tolerance, at n / 5: 0.02-3 where this pays, above 500 where it does not.
        if bool(residuals[0] > 100 * TOLERANCE * theta[0]):
            return None
        end = _expected(before, (m, s), wanted) if before else m + n // 16
        if end > min(limit, m + PATIENCE * n):
            return None
        before, check = (m, s), max(end, m + n // 32)
    return None


def _extend(G: Tensor, basis: Tensor, T: Tensor, m: int, b: int) -> Tensor:
    """Append the next b vectors to the m rows of `basis`, and A_j and B_j to T, j = m / b; returns B_j."""
    known, near = basis[:m], basis[max(m - 2 * b, 0) : m]
    X = G @ basis[m - b : m].mT
    along = near @ X
    X.addmm_(near.mT, along, alpha=-1)
    Q: Tensor
    B: Tensor
    Q, B = torch.linalg.qr(X.addmm_(known.mT, known @ X, alpha=-1))
    T[m - b : m, m - b : m] = along[-b:]
    if bool(B.diagonal().abs().min() < CANCELLED * T.diagonal().max()):
        for _ in range(2):  # twice, since of a block of zeros QR makes vectors that have nothing to do with G
            Q, change = torch.linalg.qr(Q.addmm_(known.mT, known @ Q, alpha=-1))
            B = torch.mm(change, B)
    basis[m : m + b] = Q.mT
    T[m : m + b, m - b : m] = B
    return B


def _expected(before: tuple[int, int], now: tuple[int, int], wanted: int) -> int:
    """The m at which s will reach `wanted`, from two points (m, s) of the curve s + 1 = c (m - m_0)^1.5.

    And 3 % more, which cost less than another decomposition of T does when it was just not enough.
    """
    (m1, s1), (m2, s2) = before, now
    growth: float = ((max(s2, s1 + 1) + 1) / (s1 + 1)) ** (2 / 3)
    reach = (m2 - m1) / (growth - 1)
    factor: float = ((wanted + 1) / (s1 + 1)) ** (2 / 3)
    return int(1.03 * (m1 + reach * (factor - 1)))
