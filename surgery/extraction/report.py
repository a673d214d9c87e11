"""What an adapter keeps of the change from one model to another, tensor by tensor and in all.

Shares are of squared Frobenius norms: with D = W - b and R what is left of it, error = |R| / |D|, energy = 1 - error^2.
R is measured from the factors as they are stored, in float32 or better; rounding alone makes it 1e-7 of B A or so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kept = Literal["factors", "whole", "nothing"]


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor that differs: `change` is |D|^2, `left` |R|^2, `relative` |D| / |b|; `rank` 0 unless by factors."""

    name: str
    kept: Kept
    rank: int
    change: float
    left: float
    relative: float

    @property
    def error(self) -> float:
        """|R| / |D|."""
        return math.sqrt(self.left / self.change)

    @property
    def energy(self) -> float:
        """The share of |D|^2 that is kept; never below 0."""
        return max(0.0, 1.0 - self.left / self.change)

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "tensor": self.name,
            "kept": self.kept,
            "rank": self.rank,
            "energy": self.energy,
            "error": self.error,
            "relative_change": None if math.isinf(self.relative) else self.relative,
        }

    def dump(self) -> dict[str, Any]:
        """All fields, for `load`."""
        return {**asdict(self), "relative": str(self.relative)}

    @staticmethod
    def load(fields: Mapping[str, Any]) -> Row:
        """What `dump` gave."""
        return Row(**{**fields, "relative": float(fields["relative"])})


@dataclass(frozen=True)
class Extracted:
    """An adapter that was made. `rows` are the tensors that differ, in the order of the base.

    `parameters` of the adapter, `nbytes` of its file.
    """

    out: Path
    base: str
    model: str
    rows: tuple[Row, ...]
    equal: int
    parameters: int
    nbytes: int
    remarks: tuple[str, ...]

    @property
    def error(self) -> float:
        """|R| / |D| over the matrices that became factors."""
        return _error(row for row in self.rows if row.kept == "factors")

    @property
    def energy(self) -> float:
        """The share of the change that is kept of those matrices."""
        return max(0.0, 1.0 - self.error**2)

    @property
    def error_in_all(self) -> float:
        """|R| / |D| over everything that was compared, with what the adapter leaves out."""
        return _error(self.rows)

    @property
    def energy_in_all(self) -> float:
        """The share of the change that is kept of everything that was compared."""
        return max(0.0, 1.0 - self.error_in_all**2)

    def json(self) -> dict[str, Any]:
        """As plain data: what `--json` prints, and, less the path, what the manifest holds."""
        return {
            "base": self.base,
            "model": self.model,
            "energy": self.energy,
            "error": self.error,
            "energy_in_all": self.energy_in_all,
            "error_in_all": self.error_in_all,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "equal": self.equal,
            "remarks": list(self.remarks),
            "tensors": [row.json() for row in self.rows],
        }


def _error(rows: Iterable[Row]) -> float:
    found = list(rows)
    change = math.fsum(row.change for row in found)
    return math.sqrt(math.fsum(row.left for row in found) / change) if change else 0.0
