"""What an operation on attention heads reads beside the tensor that it edits: a module of two models, whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.header import TensorInfo
    from surgery.heads import Heads, Projection
    from surgery.plan import Source

OUTPUT_ROWS = 128  # of an output projection that are read at a time


@dataclass(frozen=True)
class Partners:
    """The tensors of an attention module, each as the running model and as another one has it.

    `heads` names them as the output does, and with them the tensor that is edited, which is one of them.
    """

    heads: Heads
    sources: Mapping[Projection, tuple[Source, Source]]

    @property
    def all(self) -> tuple[Source, ...]:
        """Everything that is read."""
        return tuple(source for pair in self.sources.values() for source in pair)

    def part(self, name: str) -> Projection:
        """Which of its parts a tensor is."""
        return next(part for part, found in self.heads.parts.items() if found == name)

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return sum(s.nbytes + sum(factor.nbytes for factor in s.info.factors) for s in self.all)

    @property
    def memory(self) -> int:
        """Upper bound of the bytes that are held while the rotations are found: a block of rows of each part of both
        models, as stored and in float64, what their adapters take there, and the work on products of heads.
        """
        d = self.heads.head_dim
        blocks = [self._block(part, source.info) for part, pair in self.sources.items() for source in pair]
        return sum(blocks) + 8 * 16 * d * d

    @property
    def kept(self) -> int:
        """Bytes of the rotations, which stay while the tensor is edited, and of the products that they are made of."""
        return 2 * 8 * self.heads.key_values * self.heads.head_dim**2

    @property
    def flops(self) -> int:
        """Floating-point operations to find the rotations, to first order: products, and SVDs as 22 d^3."""
        d = self.heads.head_dim
        read = sum(2 * d * running.info.elements for running, _ in self.sources.values())
        adapted = sum(s.info.adapted.flops(s.info.elements) for s in self.all if s.info.adapted)
        return read + adapted + 22 * self.heads.key_values * d**3

    def _block(self, part: Projection, info: TensorInfo) -> int:
        rows = {"value": self.heads.head_dim, "bias": 1, "output": OUTPUT_ROWS}[part]
        elements = min(rows, info.shape[0] if len(info.shape) > 1 else 1) * info.shape[-1]
        adapters = 2 * info.adapted.memory(info.shape) if info.adapted else 0
        return elements * (info.stored.dtype.bits // 8 + 8) + adapters
