"""The result of a comparison: tables with a row for each matrix, and the spectra behind them.

All angles are in radians. Shares of a change are NaN where nothing changed. `before` and `after` name two of the
models: (base, tuned), and with a third also (base, third) and (tuned, third). Columns of `matrices`, one row for each
matrix and pair, NaN where `quick` leaves something out:

matrix, tensor, expert       `matrix` is the tensor's name, with `[3]` behind it for expert 3 of a stack (else -1)
stack, layer, module, group  layer -1 outside the layers; `module` is `self_attn.q_proj`, without numbers; group or ""
rows, cols, known            shape, and how many leading triplets were computed: all, or those of the largest rank
before, after, equal         the pair; whether the two are equal in value
relative_change              |A - B|_F / |B|_F, B before, A after
change_energy                |A - B|_F^2; that of base -> tuned is the weight of `moved_back` in a mean over matrices
energy_ratio                 |A|_F^2 / |B|_F^2
values_change                |S_A - S_B|_2 / |S_B|_2 over the known singular values
values_max_change            max |S_A - S_B|
values_head_share, values_bulk_share, values_tail_share
                             where in the spectrum the squared change of the values sits: leading 20 %, rest,
                             trailing 20 %
stable_rank_before, stable_rank_after, effective_rank_before, effective_rank_after
rank                         r of the columns that follow: the first rank asked for, as far as it has a meaning
angle_left, angle_right      mean principal angle of the leading-r left and right subspaces
angle_left_max, angle_right_max
rotation                     mean of angle_left and angle_right
cos_left, cos_right          mean |cos| between u_i and u_i', v_i and v_i', over i < r
intruders_left, intruders_right
                             of the r leading directions after, those that no direction before meets with |cos| >= 0.5;
                             an upper bound where not all are known
diagonal_share               of the change within the known part of the base's singular basis, its share on the diagonal
                             (values); the rest is rotation
change_stable_rank, change_effective_rank
change_rank_90               number of leading singular directions of A - B that carry 90 % of its energy
change_head_share            share of that energy in the leading 20 %
moved_back                   row (base, third): the share of the change base -> tuned that third undid

`gauge`: a row for each key/value head and pair: stack, layer, module (`self_attn`), head, before, after, change
(relative, of V and O together), explained (share of the squared change that a rotation of the inner space explains),
chance (what it would explain of a small change at random), rotation (its mean angle), aligned_change (relative change
that is left), remainder (|O_A V_A - O_B V_B|_F / |O_B V_B|_F: what changes the function).

`embeddings`: a row for each model and rank: model, rank, size (of the space), alignment (mean cos^2 of the principal
angles between the leading-r row spaces of embedding and head; by chance r / size), angle (their mean), tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


# Radians; angles of float32 vectors below this are rounding. Of bases that are equal but for float32's rounding (256 to
# 4096 rows, 51 to 819 columns) the mean angle came out as 1-3e-7, the largest as 7e-7; an angle of 1e-6 was 4 % off,
# one of 1e-5 0.3 %. The vectors may carry more: two decompositions of one matrix, its rows and columns permuted, differ
# by up to 2e-6 in the mean and 1e-5 in the largest angle where the values beside the cut at r lie close to each other.
RESOLUTION = 1e-6
GAUGE = (
    *("stack", "layer", "module", "head", "before", "after"),
    *("change", "explained", "chance", "rotation", "aligned_change", "remainder"),
)
EMBEDDINGS = ("model", "rank", "size", "alignment", "angle", "tied")


@dataclass(frozen=True)
class Comparison:
    """What `surgery diff` found.

    `models` maps each model's short name to what the user typed, the base first. `ranks` are the ranks asked for, as
    text (`20%`, `768`), the main one first. `decoder` is the stack of the text decoder's layers, which recipes mean by
    `layers`; empty where there is none.

    `spectra` holds arrays by name, read when they are asked for. For a matrix M, a model X and a pair `X>Y`:
    `M/values/X` (singular values, descending), `M/change_values/X>Y` (those of Y - X; not with `quick`),
    `M/angles_left@R/X>Y`, `M/angles_right@R/X>Y` (principal angles ascending, radians; R one of `ranks`; their number
    is the rank that was used), `M/cos_left/X>Y`, `M/cos_right/X>Y` (|cos| of matching vectors),
    `M/best_cos_left/X>Y`, `M/best_cos_right/X>Y` (for each direction of Y the largest |cos| with one of X), and
    `embedding-head/angles@R/X` (of the row spaces of X's embedding and head).
    """

    models: Mapping[str, str]
    ranks: tuple[str, ...]
    quick: bool
    decoder: str
    matrices: pd.DataFrame
    gauge: pd.DataFrame
    embeddings: pd.DataFrame
    remarks: tuple[str, ...]
    spectra: Mapping[str, Array]

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(before, after), in the order in which they are shown."""
        base, *others = self.models
        return (*((base, other) for other in others), *([(others[0], others[1])] if len(others) > 1 else []))
