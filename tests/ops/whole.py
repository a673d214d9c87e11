"""Operations on whole tensors in memory, cut into pieces as the executor cuts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from surgery.ops.base import Op
from surgery.ops.whole import Piece, Whole
from surgery.spectral.decomposer import Decomposer

NAME = "model.layers.0.mlp.up_proj.weight"


def edited(
    op: Op, W: Tensor, sources: Mapping[str, Tensor], *, elements: int = 1 << 19, rows: int = 1 << 19, name: str = NAME
) -> Tensor:
    """What an operation makes of a tensor that it gets in pieces of so many elements, or so many rows."""

    def pieces() -> Iterator[Piece]:
        if op.kind == "matrix":
            matrices = W.shape[0] if W.ndim == 3 else 1
            cut = {role: X.reshape(matrices, *X.shape[-2:]) for role, X in {"": W, **sources}.items()}
            at_once, each = 1, W.shape[-2] * W.shape[-1]
        elif op.kind == "rows":
            cut = {role: X.reshape(-1, X.shape[-1]) for role, X in {"": W, **sources}.items()}
            at_once, each = rows, W.shape[-1]
        else:
            cut = {role: X.reshape(-1) for role, X in {"": W, **sources}.items()}
            at_once, each = elements, 1
        for first in range(0, max(len(cut[""]), 1), at_once):
            taken = {role: X[first : first + at_once] for role, X in cut.items()}
            if op.kind == "matrix":
                taken = {role: X[0] for role, X in taken.items()}
            running = taken.pop("")
            yield Piece(running, taken, first * each, Decomposer())

    edit = op.prepare(Whole(name, tuple(W.shape), pieces))
    before = {role: X.clone() for role, X in sources.items()}
    made = [edit(piece).reshape(-1) for piece in pieces()]
    assert all(torch.allclose(X, before[role], rtol=0, atol=0, equal_nan=True) for role, X in sources.items()), (
        "an input was changed"
    )
    return torch.cat(made).reshape(W.shape)
