"""Figures of what surrounds the rotation: how much of it is a gauge, and the geometry of embedding and head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgery.analysis.cells import commonest, main_stack, of_pair
from surgery.plotting import draw_line, figure, legend_above, look, pair_label, plain, save, whole_numbers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from surgery.analysis.comparison import Comparison

SCALES = (5.0, 10.0, 25.0, 50.0, 100.0)
_LINES = {  # column of `gauge`: what it says, in the order of the looks
    "change": "change of V and O",
    "aligned_change": "left after alignment",
    "remainder": "change of the product O V",
}


def gauge(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """How much of the change of value and output projections a rotation of the space between them explains.

    Above, for each layer and key/value head, the share of the squared change that an orthogonal map of the inner space
    explains; below, over the layers, the relative change before and after that alignment and that of the product
    O V, the mean over heads and their range. A column for each pair. As an appendix of arXiv 2509.12235. Of several
    attention modules in a layer (to itself, to an encoder) the commonest is shown, and named. Writes `gauge`, and
    nothing where no heads were compared. Raises NotInstalledError and OutputError.
    """
    if not len(comparison.gauge):
        return ()
    table, module = _one_module(comparison)
    pairs = [pair for pair in comparison.pairs if np.isfinite(of_pair(table, pair)["change"]).any()]
    if not pairs:
        return ()
    heads = sorted(set(table["head"]))
    most = _end(100 * table["explained"].max())
    heights = [max(0.7, min(2.6, 0.16 * len(heads))), 2.1]
    width = max(4.8, 0.6 + 3.2 * len(pairs))
    with figure(width, sum(heights) + 1.3) as drawing:
        above, below = drawing.subplots(2, len(pairs), squeeze=False, height_ratios=heights, sharex="col", sharey="row")
        for i, pair in enumerate(pairs):
            image = _heads(above[i], of_pair(table, pair), heads, most)
            above[i].set_title(pair_label(pair, 2.8), fontsize=9)
            _changes(below[i], of_pair(table, pair))
            whole_numbers(below[i], "layer")
        above[0].set_ylabel("key/value head")
        below[0].set_ylabel("relative change, %")
        bar = drawing.colorbar(image, ax=list(above), pad=0.02, aspect=8)
        bar.set_label(f"rotation\nexplains, %\n(chance {100 * table['chance'].mean():.2g})")
        legend_above(drawing, width, below, module)
        return save(drawing, out, "gauge")


def _one_module(comparison: Comparison) -> tuple[pd.DataFrame, str | None]:
    """The heads of one attention module of one stack, and its name where there are others."""
    stacks = comparison.gauge["stack"].fillna("")
    main = main_stack(comparison)
    table = comparison.gauge[stacks == (main if main in set(stacks) else commonest(stacks))]
    module = commonest(table["module"])
    several = table["module"].nunique() > 1
    return table[table["module"] == module], f"attention module {plain(module)}" if several else None


def _end(most: float) -> float:
    """Where the scale of shares ends, in percent: no higher than needed, and the same for values that are close."""
    return next((end for end in SCALES if most <= end), SCALES[-1])


def _heads(axes: Axes, table: pd.DataFrame, heads: list[int], most: float) -> AxesImage:
    layers = sorted(set(table["layer"]))
    span = range(min(layers), max(layers) + 1)
    shares = 100 * table.pivot(index="head", columns="layer", values="explained").reindex(index=heads, columns=span)
    place = (span[0] - 0.5, span[-1] + 0.5, len(heads) - 0.5, -0.5)
    image = axes.imshow(
        np.asarray(shares, np.float64),
        aspect="auto",
        cmap="cividis",
        vmin=0,
        vmax=most,
        extent=place,
        interpolation="nearest",
    )
    axes.grid(False)
    axes.spines[:].set_visible(False)
    step = max(1, -(-len(heads) // 8))
    axes.set_yticks(range(0, len(heads), step), [str(head) for head in heads[::step]])
    axes.tick_params(labelbottom=False)
    return image


def _changes(axes: Axes, table: pd.DataFrame) -> None:
    for i, (column, label) in enumerate(_LINES.items()):
        by = (100 * table.set_index("layer")[column]).groupby("layer").agg(["mean", "min", "max"]).dropna()
        if len(by):
            axes.fill_between(by.index, by["min"], by["max"], color=look(i).colour, alpha=0.13, linewidth=0)
            draw_line(axes, by.index.to_numpy(), by["mean"].to_numpy(), look(i), label, 2 * i)
    axes.set_ylim(bottom=0)


def embeddings(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """How the row spaces of embedding and head lie to each other, in each model.

    On the left their principal angles at the first rank, each model a line, and the angle of chance; on the right
    their alignment, the mean cos^2, for each rank, and what random spaces of that size would have, r / n. Writes
    `embeddings`, and nothing for models without both. Raises as `gauge`.
    """
    table = comparison.embeddings
    if not len(table):
        return ()
    rank, models = comparison.ranks[0], list(comparison.models)
    spectra = {model: comparison.spectra.get(f"embedding-head/angles@{rank}/{model}") for model in models}
    known = {model: np.degrees(angles) for model, angles in spectra.items() if angles is not None and len(angles)}
    with figure(7.2, 3.4) as drawing:
        panels = drawing.subplots(1, 2 if known else 1, squeeze=False)[0]
        if known:
            for model, angles in known.items():
                i = models.index(model)
                label = _model(table, model)
                draw_line(panels[0], np.arange(1, angles.size + 1), angles, look(i), label, 2 * i)
            r = max(angles.size for angles in known.values())
            by_chance = float(np.degrees(np.arccos(np.sqrt(min(1.0, r / float(table["size"].iloc[0]))))))
            panels[0].axhline(by_chance, color="black", linewidth=1, linestyle=(0, (1, 2)), label="by chance")
            panels[0].set_ylim(0, 92)
            panels[0].set_yticks([0, 30, 60, 90])
            panels[0].set_ylabel("principal angle, degrees")
            panels[0].set_title(f"embedding and head, r = {r:,}", fontsize=9)
            whole_numbers(panels[0], "index", ticks=5)
        _alignment(panels[-1], comparison, models)
        legend_above(drawing, 7.2, panels)
        return save(drawing, out, "embeddings")


def _alignment(axes: Axes, comparison: Comparison, models: list[str]) -> None:
    """Dots for each rank, models side by side, and a stroke at the level of chance, r / n."""
    table = comparison.embeddings.drop_duplicates(["model", "rank"])
    ranks = sorted(set(table["rank"]))
    places = np.arange(len(ranks))
    for i, model in enumerate(models):
        mine = table[table["model"] == model].set_index("rank")["alignment"].reindex(ranks).to_numpy(np.float64)
        x = places + 0.6 * ((i + 0.5) / len(models) - 0.5)
        draw_line(axes, x, mine, look(i), _model(table, model), linestyle="none", markevery=1, markersize=6)
    chance = [rank / float(table["size"].iloc[0]) for rank in ranks]
    axes.hlines(chance, places - 0.35, places + 0.35, colors="black", linestyles=(0, (1, 2)), label="by chance")
    axes.set_xticks(places, [f"{rank:,}" for rank in ranks])
    axes.set_xlim(-0.6, len(ranks) - 0.4)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("rank r")
    axes.set_ylabel("alignment, mean cos²")


def _model(table: pd.DataFrame, model: str) -> str:
    tied = bool(table.loc[table["model"] == model, "tied"].any())
    return f"{plain(model)} (tied)" if tied else plain(model)
