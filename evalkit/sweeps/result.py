"""What a sweep comes to: a row for each model and variant, and which variant is best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evalkit.stats import CONFIDENCE, Difference, Estimate
from evalkit.sweeps.halves import Half
from evalkit.sweeps.spec import sign_of

Kind = Literal["model", "variant", "baseline"]
Scores = Mapping[Half, Mapping[str, Estimate]]
Differences = Mapping[Half, Mapping[str, Difference]]


@dataclass(frozen=True, slots=True)
class Row:
    """A model or a variant: its scores on all examples and on each half, by split, and how they differ from `start`'s.

    `digest` names its content (see `evalkit.digest`). `objective` is what the choice goes by, on the selection half,
    the larger the better; `allowed` tells whether it loses no more there than is tolerated. `pareto`: no other row is
    as good on every split and better on one, on all examples. `kept` is the checkpoint in the sweep's directory. A
    `baseline` is a plain average of models. `models` maps a recipe's roles to the sweep's models, and `edited` is the
    role that the recipe begins with. A variant that could not be made has an `error`, which says why, and no digest
    and scores. `shared`: it was made of parts of decompositions of which other variants need more, so that
    `surgery apply` alone may differ in the last bits.
    """

    name: str
    kind: Kind
    digest: str | None
    recipe: str | None = None
    summary: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)
    to_start: Differences = field(default_factory=dict)
    objective: float = 0.0
    allowed: bool = True
    pareto: bool = False
    best: bool = False
    kept: str | None = None
    edited: str | None = None
    error: str | None = None
    shared: bool = False

    def json(self) -> dict[str, Any]:
        """As plain data."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["objective"] = self.objective if math.isfinite(self.objective) else None
        for name in ("scores", "to_start"):
            plain[name] = {
                half: {split: estimate.json() for split, estimate in found.items()}
                for half, found in plain[name].items()
            }
        return plain


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A sweep that has ended.

    `best` names the row that was chosen; where it is `start` itself, no variant is better on the selection half.
    """

    name: str
    summary: str
    models: Mapping[str, str]
    start: str
    splits: tuple[str, ...]
    measure: str
    objective: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    best: str
    words: tuple[str, ...] = ()

    @property
    def sign(self) -> int:
        """-1 where less is better."""
        return sign_of(self.measure)

    @property
    def winner(self) -> Row:
        """The row that was chosen."""
        return self.row(self.best)

    def row(self, name: str) -> Row:
        """The row of that name. Raises KeyError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def json(self) -> dict[str, Any]:
        """As plain data."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        lists = {"splits": [*self.splits], "words": [*self.words], "rows": [row.json() for row in self.rows]}
        return {"confidence": CONFIDENCE, **plain, **lists}
