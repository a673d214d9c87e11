"""Comparisons that are made up, but plausible: what fine-tuning would leave behind, without any weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from surgery.analysis.comparison import GAUGE, Comparison

Array = NDArray[np.float64]

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
EXPERTS = ("mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.down_proj")
HOSTILE = "</script><img src=x onerror=alert(1)>"
STACK = "model.layers"
SLOW = ("values_head_share", "values_bulk_share", "values_tail_share", "effective_rank_before", "effective_rank_after")
SLOW += ("change_stable_rank", "change_effective_rank", "change_rank_90", "change_head_share")


def comparison(
    models: Sequence[str] = ("base", "sft"),
    layers: int = 4,
    modules: Sequence[str] = ATTENTION + MLP,
    n: int = 96,
    quick: bool = False,
    experts: int = 0,
    equal: Sequence[str] = (),
    outside: bool = True,
    ranks: tuple[str, ...] = ("20%", "8"),
    seed: int = 0,
) -> Comparison:
    """As `surgery diff` would give it, for a model with `layers` layers of these modules and n singular values each.

    What `quick` leaves out is NaN. With `experts`, so many for each module below `mlp.experts`. Matrices named in
    `equal` are the same in all models.
    """
    maker = _Maker(tuple(models), n, quick, ranks, frozenset(equal), np.random.default_rng(seed))
    for layer in range(layers):
        depth = layer / max(1, layers - 1)
        for module in modules:
            tensor = f"{STACK}.{layer}.{module}.weight"
            if experts and ".experts." in module:
                for expert in range(experts):
                    maker.add(f"{tensor}[{expert}]", tensor, expert, STACK, layer, module, "mlp", depth)
            else:
                group = "attention" if "attn" in module else "mlp"
                maker.add(tensor, tensor, -1, STACK, layer, module, group, depth)
    if outside:
        for name, group in (("model.embed_tokens", "embedding"), ("lm_head", "lm_head")):
            maker.add(f"{name}.weight", f"{name}.weight", -1, "", -1, name, group, 0.2)
        maker.add_embeddings()
    if any("v_proj" in module for module in modules):
        maker.add_gauge(layers)
    return maker.made()


class _Maker:
    def __init__(
        self,
        models: tuple[str, ...],
        n: int,
        quick: bool,
        ranks: tuple[str, ...],
        equal: frozenset[str],
        random: np.random.Generator,
    ) -> None:
        self.models, self.n, self.quick, self.ranks, self.equal, self.random = models, n, quick, ranks, equal, random
        self.rows: list[dict[str, Any]] = []
        self.gauge: list[dict[str, Any]] = []
        self.embeddings: list[dict[str, Any]] = []
        self.spectra: dict[str, Array] = {}
        empty = pd.DataFrame()
        self.pairs = Comparison(dict.fromkeys(models, ""), ranks, quick, STACK, empty, empty, empty, (), {}).pairs

    def add(
        self, matrix: str, tensor: str, expert: int, stack: str, layer: int, module: str, group: str, depth: float
    ) -> None:
        """One matrix: its rows, one for each pair, and its spectra."""
        values = 10 * np.arange(1, self.n + 1) ** -0.6
        equal = matrix in self.equal
        for i, model in enumerate(self.models):
            moved = 0 if equal else 0.002 * i
            self.spectra[f"{matrix}/values/{model}"] = values * (1 + moved * self.random.standard_normal(self.n))
        for i, pair in enumerate(self.pairs):
            row = {
                "matrix": matrix,
                "tensor": tensor,
                "expert": expert,
                "stack": stack,
                "layer": layer,
                "module": module,
            }
            row |= {
                "group": group,
                "rows": 2 * self.n,
                "cols": self.n,
                "known": self.n,
                "before": pair[0],
                "after": pair[1],
            }
            scale = 0.0 if equal else (0.6 + 0.4 * depth) * (1.0, 0.8, 0.5)[i] * self.random.uniform(0.85, 1.15)
            self.rows.append(row | self._measured(matrix, pair, scale))

    def _measured(self, matrix: str, pair: tuple[str, str], scale: float) -> dict[str, Any]:
        key = f"{pair[0]}>{pair[1]}"
        left, right = (self._angles(matrix, side, key, scale) for side in ("left", "right"))
        cos = np.cos(np.linspace(0.1, 1.5, self.n) * scale)
        for side in ("left", "right"):
            self.spectra[f"{matrix}/cos_{side}/{key}"] = cos
            self.spectra[f"{matrix}/best_cos_{side}/{key}"] = np.maximum(cos, 0.3)
        change = np.exp(-np.arange(self.n) / 12) * scale
        if not self.quick:
            self.spectra[f"{matrix}/change_values/{key}"] = change
        before, after = (self.spectra[f"{matrix}/values/{model}"] for model in pair)
        r = left.size
        back = len(self.models) > 2 and pair == self.pairs[1] and scale > 0
        found: dict[str, Any] = {
            "equal": scale == 0,
            "relative_change": 0.05 * scale,
            "change_energy": float((0.05 * scale) ** 2 * np.sum(before**2)),
            "energy_ratio": float(np.sum(after**2) / np.sum(before**2)),
            "values_change": float(np.linalg.norm(after - before) / np.linalg.norm(before)),
            "values_max_change": float(np.abs(after - before).max()),
            "values_head_share": 0.7 if scale else math.nan,
            "values_bulk_share": 0.25 if scale else math.nan,
            "values_tail_share": 0.05 if scale else math.nan,
            "stable_rank_before": 20.0,
            "effective_rank_before": 60.0,
            "stable_rank_after": 20.1 if scale else 20.0,
            "effective_rank_after": 60.5 if scale else 60.0,
            "rank": r,
            "angle_left": float(left.mean()),
            "angle_right": float(right.mean()),
            "angle_left_max": float(left.max()),
            "angle_right_max": float(right.max()),
            "rotation": float((left.mean() + right.mean()) / 2),
            "cos_left": float(cos[:r].mean()),
            "cos_right": float(cos[:r].mean()),
            "intruders_left": int(3 * scale),
            "intruders_right": int(2 * scale),
            "diagonal_share": 0.01 / scale if scale else math.nan,
            "change_stable_rank": 5.0 if scale else 0.0,
            "change_effective_rank": 30.0 if scale else 0.0,
            "change_rank_90": 27.0 if scale else 0.0,
            "change_head_share": 0.8 if scale else math.nan,
            "moved_back": 0.3 + 0.2 * scale if back else math.nan,
        }
        return found | (dict.fromkeys(SLOW, math.nan) if self.quick else {})

    def _angles(self, matrix: str, side: str, key: str, scale: float) -> Array:
        """Of all ranks, kept; those of the first rank, returned."""
        lean = 1.0 if side == "left" else 0.8
        spectra = []
        for rank in self.ranks:
            r = round(self.n * float(rank[:-1]) / 100) if rank.endswith("%") else min(self.n, int(rank))
            angles = np.minimum(np.pi / 2, lean * scale * (0.1 + 1.2 * (np.arange(1, r + 1) / r) ** 2))
            self.spectra[f"{matrix}/angles_{side}@{rank}/{key}"] = angles
            spectra.append(angles)
        return spectra[0]

    def add_embeddings(self) -> None:
        """The geometry of embedding and head, of each model and rank."""
        for i, model in enumerate(self.models):
            for rank in self.ranks:
                r = self.spectra[f"lm_head.weight/angles_left@{rank}/{'>'.join(self.pairs[0])}"].size
                angles = np.linspace(0.3, 1.5, r) * (1 - 0.05 * i)
                self.spectra[f"embedding-head/angles@{rank}/{model}"] = angles
                alignment = float(np.mean(np.cos(angles) ** 2))
                row = {
                    "model": model,
                    "rank": r,
                    "size": self.n,
                    "alignment": alignment,
                    "angle": float(angles.mean()),
                }
                self.embeddings.append(row | {"tied": False})

    def add_gauge(self, layers: int, heads: int = 2) -> None:
        """Value and output projections, head by head."""
        for before, after in self.pairs:
            for layer in range(layers):
                for head in range(heads):
                    change, explained = 0.05 + 0.002 * layer, 0.3 + 0.1 * head + 0.3 * layer / layers
                    row = {
                        "stack": STACK,
                        "layer": layer,
                        "module": "self_attn",
                        "head": head,
                        "before": before,
                        "after": after,
                        "change": change,
                    }
                    row |= {
                        "explained": explained,
                        "rotation": 0.02,
                        "aligned_change": change * math.sqrt(1 - explained),
                    }
                    self.gauge.append(row | {"remainder": change * 0.6, "chance": 0.05})

    def made(self) -> Comparison:
        """What was added so far."""
        return Comparison(
            models={model: f"/models/{model}" for model in self.models},
            ranks=self.ranks,
            quick=self.quick,
            decoder=STACK,
            matrices=pd.DataFrame(self.rows),
            gauge=pd.DataFrame(self.gauge, columns=list(GAUGE)),
            embeddings=pd.DataFrame(self.embeddings),
            remarks=("`model.norm.weight` has one dimension and is not compared.",),
            spectra=self.spectra,
        )


def hostile() -> Comparison:
    """Models and modules whose names are HTML, formulas, or hardly text."""
    modules = ("self_attn.q_proj", "self_attn.v_proj", f"mlp.{HOSTILE}", "mlp.$x_{$", "mlp.名前\u202e\x00")
    return comparison(("base", HOSTILE, "_$\\frac$ 模型"), layers=2, modules=modules)
