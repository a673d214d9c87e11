"""The outer singular triplets of a matrix: its leading and trailing ones.

Three routes to the same triplets, each with its limit. Write eps32 = 6e-8, eps64 = 1.1e-16, n = min(rows, cols),
lambda_i = sigma_i^2, all for W with rows >= cols (else its transpose).

1. *Float32 Gram and Rayleigh-Ritz.* Eigenvectors Q of G = W^T W in float32, for the h wanted triplets and p more;
   then, with Y = W Q, the small matrices Y^T Y and Q^T Q in float64, and the exact Ritz vectors of W within span(Q).
   Eigenvectors of the float32 G carry errors of eps32 lambda_1 / (lambda_i - lambda_j) along v_j. Those inside
   span(Q) Rayleigh-Ritz removes: what is left there is the one-sided error of Y, about eps32 sigma_h / gap, no more
   than the eps32 sigma_1 / gap of a float32 SVD. Those towards the outside remain, and are below eps32 kappa,
   kappa = lambda_1 / (lambda_h - lambda_{h+p}): hence MAX_KAPPA.
   For small h the eigenvectors come from `lanczos`, with residuals as those of eigh, and so many, p > 0, that kappa is
   small enough. Errors were 0.9-1.4 times those with eigh, a sixteenth to a third of the float32 SVD's (n = 1024).
2. *Float64 Gram.* Errors of eps64 lambda_1 / (2 sigma_i gap): smaller than the float32 SVD's eps32 sigma_1 / gap while
   sigma_i / sigma_1 > eps64 / (2 eps32) = 1e-9. The left vectors u_i = W v_i / sigma_i are orthonormal to
   eps64 lambda_1 / (sigma_i sigma_j): hence MIN_RATIO.
3. *SVD in float64* of the triangular factor R of W, for what is below, exact rank deficiency included. The left
   vectors come from a QR factorisation of W V, so that where sigma_i is 0 they are some orthonormal completion.

References: Golub and Van Loan, Matrix Computations, 4th ed., sections 8.1-8.3 (perturbation, Ritz vectors), 8.6 (SVD).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.errors import NumericalError
from surgery.spectral.cost import ROW_BLOCK, iterative, padded
from surgery.spectral.gram import gram, symmetric, symmetrize_
from surgery.spectral.lanczos import leading_eigenpairs
from surgery.spectral.svd import LinAlgError, svd

# Route 1 up to here. The bound is far from reached, as rounding errors spread over n directions: up to kappa = 150 the
# results were 1.5-5 times nearer to float64 than the float32 SVD's, at 300 as near, at 2000 up to twice as far.
# Matrices of a trained model (SmolLM2-135M) have 5-60 at head = 20 %, rarely 600.
MAX_KAPPA = 150.0
# Route 2 down to here: left vectors orthonormal to 1e-6, the accuracy of float32 eigenvectors.
MIN_RATIO = 1e-5
# Bounds on the squared Frobenius norm within which a float32 Gram matrix neither overflows nor loses digits to
# underflow. Squares of float32 numbers always fit into float64.
FLOAT32_RANGE = (1e-20, 1e30)


@dataclass(frozen=True, slots=True)
class Triplets:
    """Some singular triplets (u_i, sigma_i, v_i) of one matrix, in descending order of sigma.

    U (m x k) and V (n x k) have orthonormal columns and the matrix's dtype; S (k) is float64. All are contiguous, so
    that products with them have the same bits wherever they come from.
    """

    U: Tensor
    S: Tensor
    V: Tensor

    def times(self, values: Tensor) -> Tensor:
        """U diag(values), in the dtype of U."""
        return self.U * values.to(self.U.dtype)

    def leading(self, count: int) -> Triplets:
        """The first `count` of them, in memory of their own; all of them as they are."""
        if count == len(self.S):
            return self
        contiguous = torch.contiguous_format
        return Triplets(*(X[..., :count].clone(memory_format=contiguous) for X in (self.U, self.S, self.V)))


def outer_triplets(W: Tensor, head: int, tail: int = 0) -> Triplets:
    """The `head` leading and the `tail` trailing triplets of W (m x n, finite, float32 or float64).

    0 <= head, 0 <= tail, 1 <= head + tail <= min(m, n). Errors are no larger than those of a float32 SVD, see above.
    For equal singular values any orthonormal basis of their space may come out, for zero ones any completion. The same
    matrix gives the same bits as long as torch has the same number of threads. Raises NumericalError when no route
    converges.
    """
    if W.shape[0] < W.shape[1]:
        mirrored = outer_triplets(W.mT, head, tail)
        return Triplets(mirrored.V, mirrored.S, mirrored.U)
    if W.dtype == torch.float32:
        for route in (_ritz, _gram64):
            try:
                triplets = route(W, head, tail)
            except LinAlgError:  # eigh did not converge: the next route may
                continue
            if triplets is not None:
                return triplets
    return _svd64(W, head, tail)


def singular_values(W: Tensor) -> Tensor:
    """All singular values of W (m x n, finite), descending, float64.

    From the float64 Gram matrix; the absolute error, at most sqrt(eps64) sigma_1 = 1e-8 sigma_1, is below float32's.
    """
    tall = W if W.shape[0] >= W.shape[1] else W.mT
    if W.dtype == torch.float32:
        try:
            values: Tensor = torch.linalg.eigvalsh(gram(tall, torch.float64))
            return values.clamp_min(0).sqrt().flip(0)
        except LinAlgError:
            pass
    return svd(tall.double())[1]


def require_finite(W: Tensor, name: str) -> None:
    """Raise NumericalError, opening with `name` and a count, if W has NaN or infinite entries."""
    if torch.isfinite(W.sum()):  # one pass without a temporary; NaN and infinity always reach the sum
        return
    bad = W.numel() - int(torch.isfinite(W).sum())
    if bad:
        raise NumericalError(
            f"{name} has {bad} values of {W.numel()} that are NaN or infinite; a matrix to be decomposed must be "
            "finite: take a sound checkpoint, or leave this tensor out with `exclude`"
        )


def _ritz(W: Tensor, head: int, tail: int) -> Triplets | None:
    """Route 1, or None where it does not apply."""
    n = W.shape[1]
    k = padded(n, head)
    if tail or k is None:
        return None
    G = gram(W, torch.float32)
    if not FLOAT32_RANGE[0] < float(G.trace()) < FLOAT32_RANGE[1]:
        return None
    few = iterative(n, head)
    pairs = leading_eigenpairs(symmetrize_(G), head, k, MAX_KAPPA) if few else None
    values, vectors = pairs or torch.linalg.eigh(G)
    del G, pairs
    if few:  # no more than kappa needs, and some for distance
        near = int((values > values[-head] - values[-1] / MAX_KAPPA).sum())
        k = min(k, max(near + 1, head + max(16, head // 2)))
    if float(values[-1]) > MAX_KAPPA * float(values[-head] - values[-k]):
        return None
    Q = vectors[:, -k:].clone()
    del vectors
    Y = W @ Q
    # Float32 eigenvectors are orthonormal to 6e-6 only (n = 2048), which would tilt the boundary at h. To second order
    # Q T, T = (3 I - Q^T Q) / 2, is orthonormal; applied to the small matrices it costs nothing.
    T = symmetric(gram(Q, torch.float64)).mul_(-0.5)
    T.diagonal().add_(1.5)
    values, Z = torch.linalg.eigh(T @ symmetric(gram(Y, torch.float64)) @ T)
    Z = (T @ Z[:, -head:].flip(1)).float()
    S = values[-head:].flip(0).sqrt()
    return Triplets((Y @ Z).div_(S.float()), S, Q @ Z)


def _gram64(W: Tensor, head: int, tail: int) -> Triplets | None:
    """Route 2, or None where it does not apply."""
    n = W.shape[1]
    values, vectors = torch.linalg.eigh(gram(W, torch.float64))
    chosen = n - 1 - _outer(n, head, tail, W.device)
    S = values[chosen].clamp_min(0).sqrt()
    if not float(S[-1]) > MIN_RATIO * float(values[-1].clamp_min(0).sqrt()):
        return None
    V = vectors[:, chosen]
    del vectors
    return Triplets(times64(W, V / S), S, V.float(memory_format=torch.contiguous_format))


def _svd64(W: Tensor, head: int, tail: int) -> Triplets:
    """Route 3, and the route of float64 matrices."""
    m, n = W.shape
    R = W.new_zeros(0, n, dtype=torch.float64)
    for i in range(0, m, ROW_BLOCK):
        R = torch.linalg.qr(torch.cat([R, W[i : i + ROW_BLOCK].double()]), mode="r").R
    S, Vh = svd(R)[1:]
    del R
    chosen = _outer(n, head, tail, W.device)
    S, V = S[chosen], Vh[chosen].mT.clone(memory_format=torch.contiguous_format)
    del Vh
    # Householder's Q is orthonormal whatever its argument. Columns of unit length, so that tiny ones keep their digits;
    # the other factor's diagonal then is +-1, or rounding errors where sigma_i vanishes and the sign means nothing.
    Q, T = torch.linalg.qr(times64(W, V / S.clamp_min(torch.finfo(torch.float64).tiny)))
    U = torch.mul(Q, torch.where(T.diagonal() < 0, -1.0, 1.0), out=W.new_empty(Q.shape))
    return Triplets(U, S, V.to(W.dtype))


def times64(W: Tensor, X: Tensor) -> Tensor:
    """W X, computed in float64 in blocks of rows and stored in W's dtype."""
    out = W.new_empty(W.shape[0], X.shape[1])
    for i in range(0, W.shape[0], ROW_BLOCK):
        out[i : i + ROW_BLOCK] = W[i : i + ROW_BLOCK].double() @ X
    return out


def _outer(n: int, head: int, tail: int, device: torch.device) -> Tensor:
    """The indices 0 ... head-1 and n-tail ... n-1."""
    return torch.cat([torch.arange(head, device=device), torch.arange(n - tail, n, device=device)])
