"""A whole tensor, and the attention around it, as an operation may see them before it edits the first piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.heads import Heads, Projection
    from surgery.spectral.decomposer import Decomposer


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor: that of the running tensor, W, and the same part of each role's, `sources`.

    `first` is the offset of its first element in the whole. All have one dtype (float32 or float64), shape and device.
    """

    W: Tensor
    sources: Mapping[str, Tensor]
    first: int
    decomposer: Decomposer


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention module of the running model and its counterpart in another one, both as they are read.

    `part` is what is edited of it. `blocks(part, rows)` are blocks of so many rows of a part, the last perhaps of
    fewer, of the one model and of the other (rows x columns, float64); a bias is one row. A block is valid until the
    next one is taken.
    """

    heads: Heads
    part: Projection
    blocks: Callable[[Projection, int], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, slots=True)
class Whole:
    """The whole of a tensor: its name, shape, and its pieces, which are read anew each time that they are asked for.

    A piece is valid until the next one is taken. Operations of the kind `heads` get the `attention`.
    """

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Piece]]
    attention: Attention | None = None

    @property
    def elements(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


Edit = Callable[[Piece], "Tensor"]
