"""What adapters make of a tensor: W + s B A, added to each piece of W as it is read; free of torch, for plans.

Hu et al. 2021 (arXiv 2106.09685). The product is computed in blocks of whole rows that depend on the
tensor's shape alone, so its bits are the same in whatever pieces the tensor is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.header import TensorInfo

BLOCK_ELEMENTS = 1 << 19  # of the product that are made at a time: as many as are read


@dataclass(frozen=True, slots=True)
class LowRank:
    """A term scale B A (rows x cols) with A (rank x cols) and B (rows x rank).

    With `transposed` it is scale (B A)^T, A being rank x rows and B cols x rank: of embeddings, and of layers that
    store their weight as inputs x outputs.
    """

    A: TensorInfo
    B: TensorInfo
    scale: float
    transposed: bool = False

    @property
    def rank(self) -> int:
        """Columns of B and rows of A."""
        return self.A.shape[0]

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """What is read for it."""
        return self.A, self.B


@dataclass(frozen=True, slots=True)
class Shift:
    """A term scale c, c a vector as long as the tensor: the bias of an adapter's second layer."""

    vector: TensorInfo
    scale: float

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """What is read for it."""
        return (self.vector,)


@dataclass(frozen=True, slots=True)
class Adapted:
    """What becomes of a tensor: another takes its place, if any, and the terms are added to that, in order."""

    replaced_by: TensorInfo | None = None
    terms: tuple[LowRank | Shift, ...] = ()

    @property
    def factors(self) -> tuple[TensorInfo, ...]:
        """Everything that is read whole, once, before the tensor's pieces."""
        return tuple(info for term in self.terms for info in term.infos)

    def memory(self, shape: tuple[int, ...]) -> int:
        """Upper bound of the bytes beside a tensor's pieces, for arithmetic in float32.

        All factors as computed with and once more as they are turned, the largest as stored, a block of the product.
        """
        if not self.terms:
            return 0
        stored = max(info.nbytes for info in self.factors)
        columns = shape[-1] if shape else 1
        block = rows_at_a_time(shape) * columns
        return 4 * (2 * sum(info.elements for info in self.factors) + block) + stored

    def flops(self, elements: int) -> int:
        """Floating-point operations for so many elements of the tensor."""
        return sum(elements * (2 * term.rank if isinstance(term, LowRank) else 2) for term in self.terms)

    def key(self) -> list[object]:
        """What tells it from others, as plain data: where each part lies, and with which scale it is added."""
        whole = self.replaced_by
        return [
            None if whole is None else _place(whole),
            *(
                [
                    *(_place(info) for info in term.infos),
                    term.scale,
                    isinstance(term, LowRank) and term.transposed,
                ]
                for term in self.terms
            ),
        ]


def rows_at_a_time(shape: tuple[int, ...]) -> int:
    """Rows of a block of the product, the same wherever a piece begins."""
    columns = shape[-1] if shape else 1
    rows = shape[-2] if len(shape) > 1 else 1
    return max(1, min(rows, BLOCK_ELEMENTS // max(columns, 1)))


def _place(info: TensorInfo) -> list[object]:
    return [info.dtype.name, list(info.shape), info.file, info.start]
