"""Memory and arithmetic of the spectral edits; free of torch, so that a plan can use it.

Shapes are (rows, cols) of one matrix, m = max, n = min, k = head + tail. Bytes are for float32 matrices. Counted are
torch's tensors and the workspaces of LAPACK, some of which torch does not see: measured as growth of the process, the
SVD of n x n numbers takes 6.9 n^2, of 4n x n 15.2 n^2, a symmetric eigendecomposition 3.6 n^2, without the arguments.
"""

from __future__ import annotations

from typing import Literal

Orthogonalize = Literal["none", "rotate", "polar"]

ROW_BLOCK = 2048  # rows converted to float64 at a time
LIBRARY = 16 << 20  # bytes that MKL keeps for packing, whatever the shape
# Route 1 of `triplets` up to this part of all eigenvectors. For a third of them it takes two thirds of the time of
# route 2, at 0.6 as long, as the float64 eigenproblem of its subspace grows (2048x2048 and 4096x1024, one thread).
RITZ_PART = 0.6

# Route 1 finds its eigenvectors by Lanczos iteration from this n on, for heads up to this part of n. Time of the
# iteration as a part of eigh's, for slowly decaying spectra on one thread: n = 2048 0.3 at 5 %, 0.4 at 7.5 %, 0.55 at
# 10 %; n = 1024 0.5-0.7, 0.7-0.9, 0.9-1; n = 576, SmolLM2-135M, 0.7-1.2 at 5 %.
LANCZOS_SIDE = 1024
LANCZOS_PART = 0.08


def padded(n: int, head: int) -> int | None:
    """How many leading eigenvectors route 1 of `triplets` takes for `head` triplets, or None where it does not pay.

    The extra ones, a tenth of n and at least 16, put a wide gap between `head` and the boundary of the subspace.
    """
    k = head + max(16, n // 10)
    return k if head and k <= RITZ_PART * n else None


def iterative(n: int, head: int) -> bool:
    """Whether route 1 of `triplets` first tries an iteration instead of all eigenvectors."""
    return n >= LANCZOS_SIDE and 0 < head <= LANCZOS_PART * n


def workspace(shape: tuple[int, ...], head: int, tail: int = 0, orthogonalize: Orthogonalize = "none") -> int:
    """Upper bound of the bytes allocated by one edit of two matrices, result included, whichever route it takes."""
    m, n, k = max(shape), min(shape), min(head + tail, min(shape))
    if orthogonalize == "polar" and k < n:
        edit = 4 * (m * n + (m + n) * n) + _svd(4, m, n)
        k = n
    else:
        edit = 4 * (m * n + 2 * m * k)
        if orthogonalize == "rotate":
            edit += 4 * (3 * (m + n) * k + 2 * k * k) + 8 * 4 * k * k + _svd(8, k, k)
    triplets = 4 * (m + n) * k + 8 * k
    return LIBRARY + max(triplets + _outer(m, n, k, padded(n, head)), 2 * triplets + edit)


def decomposition(shape: tuple[int, ...], head: int) -> int:
    """Upper bound of the bytes allocated while the leading triplets of one matrix are computed, them included."""
    m, n = max(shape), min(shape)
    return LIBRARY + _outer(m, n, head, padded(n, head))


def merge(shape: tuple[int, ...], head: int, joined: int) -> int:
    """Upper bound of the bytes allocated by a merge that decomposes one difference of two matrices after the other.

    At most `head` triplets of each, and `joined` of all together are kept, which are made orthonormal side by side. At
    its side there is the difference before; products with the triplets are no larger.
    """
    m, n = max(shape), min(shape)
    kept = 4 * (m + n) * joined + 8 * joined
    one = 8 * m * n + kept + decomposition(shape, head)
    whitening = 8 * (8 * joined**2 + 2 * ROW_BLOCK * joined)
    return max(
        one, LIBRARY + 3 * kept + whitening, LIBRARY + 2 * kept + 4 * (2 * m * n + (2 * m + n) * max(head, joined))
    )


def _outer(m: int, n: int, k: int, subspace: int | None) -> int:
    """Bytes of the most expensive of the routes of `triplets`, their result included.

    The iteration of route 1, at most 4 * 5 n^2 with its basis and its eigenproblem of 0.6 n, is never that.
    """
    block = min(m, ROW_BLOCK)
    eigh = 8 * 5 * n * n
    gram64 = 8 * (n * n + block * n)
    vectors = 4 * (m + n) * k + 8 * (2 * n * k + block * (n + k))
    qr = max(8 * 5 * (n + block) * n, 8 * n * k + 4 * (4 * m * k + n * k))
    worst = max(eigh, gram64, 8 * n * n + vectors, qr, 8 * n * n + _svd(8, n, n))
    if subspace:
        small = 8 * max(6 * subspace**2, 2 * subspace**2 + block * subspace)
        worst = max(worst, 4 * (n * n + (m + 2 * n) * subspace) + small + 4 * (m + n) * k)
    return worst


def _svd(size: int, m: int, n: int) -> int:
    """Bytes of an SVD of m x n numbers of so many bytes: a copy, the factors, and LAPACK's workspace."""
    return size * (2 * m * n + 8 * n * n)


def flops(
    shape: tuple[int, ...],
    head: int,
    tail: int = 0,
    orthogonalize: Orthogonalize = "none",
    matrices: int = 2,
) -> int:
    """Floating-point operations of one edit, to first order, with 9 n^3 for a symmetric eigendecomposition and
    4 m n^2 + 22 n^3 for an SVD (Golub and Van Loan, figure 8.6.1 and section 8.3). An iteration for few eigenvectors
    counts as 3 n^3, by its time: 0.3 of eigh's.
    """
    m, n, k = max(shape), min(shape), min(head + tail, min(shape))
    polar = orthogonalize == "polar" and k < n
    if polar:
        k = n
    subspace = padded(n, head) if not tail else None
    few = subspace and not polar and iterative(n, head)
    triplets = m * n * n + (3 if few else 9) * n**3
    if subspace and not polar:
        triplets += 2 * m * n * subspace + m * subspace**2 + 9 * subspace**3 + 2 * (m + n) * subspace * k
    else:
        triplets += 2 * m * n * k
    edit = 2 * matrices * m * n * k
    if polar:
        edit += 8 * m * n * n + 48 * n**3
    elif orthogonalize == "rotate":
        edit += 8 * m * n * k + 6 * (m + n) * k * k + 52 * k**3
    return matrices * triplets + edit
