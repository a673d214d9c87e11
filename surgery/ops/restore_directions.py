"""Put back a model's leading (and trailing) singular directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from surgery.graded import Amount, written
from surgery.ops.base import RESULT
from surgery.ops.spectral import TwoModelOp
from surgery.quantity import Quantity
from surgery.spectral import cost

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer


class RestoreDirections(TwoModelOp):
    """W' = U_b,h S*_h V_b,h^T + U_rest S_rest V_rest^T + U_b,t S*_t V_b,t^T.

    h = `head` leading and t = `tail` trailing directions of b, the tensor of the model `from`, replace those of W, the
    running tensor; W = U S V^T and b = U_b S_b V_b^T, values descending. S* is S (`singular_values: start`) or S_b
    (`from`) on the replaced indices. With h + t >= min(rows, cols) the result is U_b S* V_b^T.

    `orthogonalize`: `none` is the formula as published, whose mixed factors are not orthonormal, so W' does not have
    the singular values S*. With the others it does: `rotate` turns the rest by the direct rotations that take the
    replaced onto the restored subspaces, `polar` replaces both factors by their nearest orthonormal matrices.
    Sources: Jin et al. 2025, RL Fine-Tuning Heals OOD Forgetting in SFT, arXiv 2509.12235 (`none`); Davis and Kahan
    1970 (`rotate`).
    """

    op: Literal["restore_directions"]
    head: Amount = Field(
        description="how many leading directions are restored: a count, a percentage of min(rows, cols), or `all`"
    )
    tail: Amount = Field(default=Quantity(count=0), description="how many trailing directions are restored")
    singular_values: Literal["start", "from"] = Field(
        default="start", description="whose values the restored directions get: those of the edited model, or of `from`"
    )
    orthogonalize: Literal["none", "rotate", "polar"] = Field(
        default="none",
        description="`none` is the published formula; `rotate` turns the other directions along, `polar` takes the "
        "nearest orthonormal factors; use `rotate` where fine-tuning changed much",
    )

    @model_validator(mode="after")
    def _restores_something(self) -> RestoreDirections:
        if not any(amount.of(1) for amount in (*written(self.head), *written(self.tail))):
            raise ValueError(
                "`head` and `tail` are both 0, so nothing would be restored; give one of them a count or a percentage"
            )
        return self

    def _counts(self, shape: tuple[int, ...]) -> tuple[int, int]:
        n = min(shape)
        return self.head.of(n), self.tail.of(n)

    def apply(self, W: Tensor, sources: Mapping[str, Tensor], decomposer: Decomposer) -> Tensor:
        """W' for a matrix W and b = `sources[from]`. Raises NumericalError for NaN, infinity, or no convergence."""
        from surgery.spectral.polar import restore_polar
        from surgery.spectral.restore import restore
        from surgery.spectral.rotation import restore_rotated

        b = self._finite_source(W, sources)
        n = min(W.shape)
        head, tail = self._counts(W.shape)
        if head + tail == 0:  # where they are graded from 0 on
            return W.clone()
        if head + tail >= n:
            return b.clone() if self.singular_values == "from" else self._with_values(b, W, decomposer)
        if self.orthogonalize == "polar":
            start, source = decomposer.triplets(W, n), decomposer.triplets(b, n)
            values = start.S.clone()
            if self.singular_values == "from":
                values[:head] = source.S[:head]
                values[n - tail :] = source.S[n - tail :]
            return restore_polar(start, source, head, tail, values)
        replaced, restored = decomposer.triplets(W, head, tail), decomposer.triplets(b, head, tail)
        values = replaced.S if self.singular_values == "start" else restored.S
        edit = restore if self.orthogonalize == "none" else restore_rotated
        return edit(W, replaced, restored, values)

    def decomposes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        n, (head, tail) = min(shape), self._counts(shape)
        if head + tail == 0:
            return {}
        if head + tail >= n:
            return {} if self.singular_values == "from" else {self.from_: (n, 0), RESULT: (0, 0)}
        asked = (n, 0) if self.orthogonalize == "polar" else (head, tail)
        return {RESULT: asked, self.from_: asked}

    def workspace(self, shape: tuple[int, ...]) -> int:
        return cost.workspace(shape, *self._counts(shape), self.orthogonalize)

    def flops(self, shape: tuple[int, ...]) -> int:
        return cost.flops(shape, *self._counts(shape), self.orthogonalize)

    def remark(self, shape: tuple[int, int]) -> str | None:
        n, (head, tail) = min(shape), self._counts(shape)
        counted = self.head.count is not None or bool(self.tail.count)
        if head + tail < n or not counted:  # whoever writes `all` knows
            return None
        asked = f"head {self.head}" + (f" + tail {self.tail}" if tail else "")
        return f"restored whole: {asked} >= {n} directions"
