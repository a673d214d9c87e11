"""The thin singular value decomposition that does not give up."""

from __future__ import annotations

import torch
from torch import Tensor

from surgery.errors import NumericalError

LinAlgError: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # documented, not in its __all__


def svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W = U diag(S) V^T with U (m x n), S (n, descending), V^T (n x n), for finite W (m x n), m >= n, in its dtype.

    LAPACK's divide and conquer (gesdd) fails on rare matrices, mostly in float32 and mostly where singular values
    crowd. Then it is tried in float64, and then on the factor R' of W = Q R, R^T = Q' R', which has the same singular
    values in other numbers. Raises NumericalError when all three fail.
    """
    for attempt in (_direct, _in_float64, _after_qr):
        try:
            U, S, Vh = attempt(W)
        except LinAlgError:
            continue
        return U.to(W.dtype), S.to(W.dtype), Vh.to(W.dtype)
    raise NumericalError(
        f"the singular value decomposition of a {W.shape[0]}x{W.shape[1]} matrix did not converge, "
        "not even in float64; leave this tensor out with `exclude`"
    )


def _direct(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U, S, Vh


def _in_float64(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _direct(W.double())


def _after_qr(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    Q, R = torch.linalg.qr(W.double())
    Q2, R2 = torch.linalg.qr(R.mT)  # W = Q R = Q R2^T Q2^T
    U, S, Vh = _direct(R2.mT)
    return Q @ U, S, Vh @ Q2.mT
