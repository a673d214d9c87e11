"""A whole tensor as an operation may measure it before it edits the first piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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
class Whole:
    """The whole of a tensor: its name, shape, and its pieces, which are read anew each time that they are asked for.

    A piece is valid until the next one is taken.
    """

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Piece]]

    @property
    def elements(self) -> int:
        """The number of its elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


Edit = Callable[[Piece], "Tensor"]
