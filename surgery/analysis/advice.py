"""What the figures of a comparison suggest to try, as commands."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.analysis.cells import changed, inside_layers, main_stack, moved_back, of_pair
from surgery.analysis.comparison import RESOLUTION
from surgery.analysis.headline import LEAST_RETURN
from surgery.analysis.measures import BELOW, LEAST_ANGLE

if TYPE_CHECKING:
    import pandas as pd

    from surgery.analysis.comparison import Comparison

# Matching leading vectors on average less aligned than this: the published formula, which mixes the vectors of both
# models, then leaves factors far from orthonormal. Its result was good at a mean |cos| of .95, and broke the models at
# .4 (recipes/README.md, the real model and the mini models).
MIXABLE_COSINE = 0.8
# Values that change this much less than the matrices: restoring them would restore nothing.
STEADY_VALUES = 0.2
BAND = 0.25  # of the layers: the band that is proposed
CONCENTRATED = 1.25  # times the mean rotation of all layers: a band worth naming


@dataclass(frozen=True, slots=True)
class Advice:
    """What was seen and what would act on it; `commands` can be pasted."""

    text: str
    commands: tuple[str, ...] = ()


def advise(comparison: Comparison, *, absolute: bool = True) -> tuple[Advice, ...]:
    """Advice in the order in which to try it; it never promises: only scores tell what an edit is worth.

    Commands name the models as they were typed, or, if `absolute`, those in directories by their whole paths: what is
    stored may be read elsewhere.
    """
    base, tuned, *third = comparison.models
    if absolute:
        comparison = replace(comparison, models={name: _whole(typed) for name, typed in comparison.models.items()})
    rows = _edited(of_pair(comparison.matrices, (base, tuned)))
    moved = changed(rows)
    if not len(moved):
        return (Advice(f"{tuned} equals {base} in every matrix of attention and MLP: there is nothing to restore."),)
    directions = _directions(comparison, moved)
    found = [*directions, *_band(comparison, rows), _average(comparison)]
    found += _values(comparison, moved)
    found += _frozen(rows)
    if third:
        found += _returned(comparison, third[0])
    return (*found, _score(comparison, ["restored", "averaged"] if directions else ["averaged"]))


def _whole(typed: str) -> str:
    return os.path.abspath(typed) if Path(typed).exists() else typed  # noqa: PTH100 - links stay as they are named


def _edited(rows: pd.DataFrame) -> pd.DataFrame:
    """What the bundled spectral recipes edit, where there is any."""
    edited = rows[rows["group"].isin(["attention", "mlp"])]
    return edited if len(edited) else rows


def _directions(comparison: Comparison, moved: pd.DataFrame) -> list[Advice]:
    """Nothing where no direction has a meaning, as those of a base of zeros."""
    cosine = float(moved[["cos_left", "cos_right"]].mean(axis=None))
    angle = math.degrees(float(moved["rotation"].mean()))
    if math.isnan(cosine):
        return []
    if cosine >= MIXABLE_COSINE:
        recipe, why = "restore-top-20pct", "close enough for the published formula"
    else:
        recipe, why = (
            "restore-top-20pct-rotate",
            ("too far for the published formula, whose factors would be far from orthonormal; `rotate` keeps them so"),
        )
    turned = f"{angle:.3g}" if angle == 0 or angle >= LEAST_ANGLE else f"<{BELOW}"
    text = (
        f"The leading directions rotated by {turned} degrees on average, matching ones have |cos| {cosine:.2f}, "
        f"{why}. Put the base's directions back:"
    )
    return [Advice(text, (_apply(comparison, recipe, "restored"),))]


def _band(comparison: Comparison, rows: pd.DataFrame) -> list[Advice]:
    """The run of layers that rotated most, a quarter of all, where it stands out; of the decoder, as in recipes."""
    if not comparison.decoder or main_stack(comparison) != comparison.decoder:
        return []
    layers = inside_layers(comparison, rows).groupby("layer")["rotation"].mean().dropna().sort_index()
    width = max(1, math.floor(BAND * len(layers) + 0.5))
    if len(layers) < 4 or list(layers.index) != list(range(len(layers))):
        return []
    means = [float(layers.iloc[i : i + width].mean()) for i in range(len(layers) - width + 1)]
    first = max(range(len(means)), key=means.__getitem__)
    if means[first] < max(RESOLUTION, CONCENTRATED * float(layers.mean())):
        return []
    band = f"{first}-{first + width - 1}" if width > 1 else str(first)
    times = means[first] / float(layers.mean())
    what, them = ("Layers", "them") if width > 1 else ("Layer", "it")
    text = f"{what} {band} rotated most, {times:.2g} times as much as the average layer. Restore {them} alone:"
    return [Advice(text, (_apply(comparison, "restore-layer-band", "restored-band", f"layers={band}"),))]


def _average(comparison: Comparison) -> Advice:
    text = "The baseline that any spectral edit has to beat is the plain average with the base:"
    return Advice(text, (_apply(comparison, "wise-ft", "averaged", "alpha=0.5"),))


def _values(comparison: Comparison, moved: pd.DataFrame) -> list[Advice]:
    values, matrices = float(moved["values_change"].median()), float(moved["relative_change"].median())
    if not values < STEADY_VALUES * matrices < math.inf:
        return []
    text = (
        f"Singular values moved by {_percent(values)}, the matrices by {_percent(matrices)} (medians): directions "
        f"changed. Restoring values alone should change next to nothing; it is the control:"
    )
    return [Advice(text, (_apply(comparison, "values-only", "control"),))]


def _frozen(rows: pd.DataFrame) -> list[Advice]:
    equal = int(rows["equal"].sum())
    if not equal:
        return []
    return [Advice(f"{equal:,} of {len(rows):,} matrices did not change at all: no recipe needs to touch them.")]


def _returned(comparison: Comparison, third: str) -> list[Advice]:
    base, tuned, *_ = comparison.models
    share = moved_back(comparison, _edited(of_pair(comparison.matrices, (base, third))))
    if math.isnan(share):
        return []
    if 100 * abs(share) < LEAST_RETURN:
        return [Advice(f"{third} moved neither back towards {base} nor further along the way that {tuned} had gone.")]
    where = f"back towards {base}" if share >= 0 else f"further away from {base}"
    text = (
        f"{third} moved {_percent(abs(share))} of the way that {tuned} had gone {where} (over all matrices that "
        f"recipes edit). To see whether its gain sits in the directions, force it onto those of {tuned}:"
    )
    command = _command("apply", "rl-with-sft-directions", *list(comparison.models.values())[1:], "swapped")
    return [Advice(text, (command,))]


def _score(comparison: Comparison, edited: list[str]) -> Advice:
    base, tuned, *_ = comparison.models.values()
    text = "Figures of weights promise nothing. Score every candidate, in and out of distribution:"
    return Advice(text, (_command("eval", "general_points", base, tuned, *edited),))


def _apply(comparison: Comparison, recipe: str, out: str, *settings: str) -> str:
    base, tuned, *_ = comparison.models.values()
    return _command("apply", recipe, base, tuned, out, *(word for item in settings for word in ("--set", item)))


def _command(*words: str) -> str:
    return shlex.join(["surgery", *words])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
