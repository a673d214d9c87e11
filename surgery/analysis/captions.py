"""What the figures of a comparison show, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.analysis.cells import SAMPLED

PAPER = "arXiv 2509.12235"


@dataclass(frozen=True, slots=True)
class Caption:
    """A title, the figure of the paper that it answers to (or nothing), what is seen, and how to read it."""

    title: str
    text: str
    answers: str = ""


_EXPERTS = f"of many experts of one module {SAMPLED}, spread over them, are averaged."
_ANGLES = (
    "Principal angles between the subspaces of the leading r singular directions before and after, in ascending "
    "order: left subspaces with full lines, right ones dashed. A flat line near 0° is a subspace that stayed; a line "
    "that climbs to 90° contains directions that the base did not have among its leading r. r stands above each panel; "
    f"{_EXPERTS}"
)

CAPTIONS = {
    "rotation_map": Caption(
        "Where directions turned",
        "Mean principal angle of the leading r singular directions, layers against modules; yellow, or pale in grey, "
        "turned most. All panels share one scale. A dash marks a module that a layer does not have.",
    ),
    "relative_change_map": Caption(
        "Where weights changed",
        "Frobenius norm of the change relative to that of the matrix before. Where this map and the one above differ, "
        "a small change turned many directions, or a large one few.",
    ),
    "layers": Caption(
        "Along the layers",
        "The mean over a layer's modules, with a band from the least to the greatest: rotation, relative change and "
        "change of singular values. What is infinite, a change from nothing, is left out.",
    ),
    "values_or_rotation": Caption(
        "Values or rotation",
        "Above, the change written in the base's singular basis: what is on the diagonal scales singular values, the "
        "rest turns directions; the number is the share on the diagonal, of what changed. Below, a point "
        "for each matrix: how far its singular values moved against how far its leading directions turned.",
    ),
    "singular_values": Caption(
        "Singular values before and after",
        "Query, key and value projections of the first, middle and last layer, all models on one logarithmic axis, and "
        "below how they differ. Lines that lie on each other, with differences far below the values, say that "
        f"fine-tuning left the values almost as they were. {_EXPERTS.capitalize()}",
        "figure 3",
    ),
    "principal_angles": Caption("Principal angles, first layer", _ANGLES, "figure 4"),
    "principal_angles_middle": Caption("Principal angles, middle layer", _ANGLES, "figure 4"),
    "principal_angles_last": Caption("Principal angles, last layer", _ANGLES, "figure 4"),
    "low_rank": Caption(
        "How many directions the change has",
        "The share of the squared change that its leading singular directions carry, the median over layers. A line "
        f"that crosses 90 % (dotted) early is a change of low rank. {_EXPERTS.capitalize()}",
    ),
    "gauge": Caption(
        "How much of it is a gauge",
        "A rotation of the space between the value and output projections of a head changes both and leaves the head's "
        "function as it is. Above, the share of the squared change that such a rotation explains, for each layer and "
        "key/value head; beside the scale, what it would explain of a small change at random. Below, the change as it "
        "is, what the best alignment leaves, and how much the product of both projections changed; bands run over "
        "heads.",
        "the appendix on gauge freedom",
    ),
    "embeddings": Caption(
        "Embedding and output head",
        "Principal angles between the leading row spaces of embedding and head in each model, and their alignment, the "
        "mean squared cosine, for each rank. Dotted is what random subspaces of that size would have. Lines of the "
        "models on each other: fine-tuning did not change how the two spaces lie.",
        "its comparison of embed_tokens and lm_head",
    ),
    "moved_back": Caption(
        "What the third model undid",
        "Above, the share of the change from the base to the second model that the third undid, along that change: of "
        "all matrices of a layer as if they were one, and a band over its modules. Below, how far each of the two is "
        "turned from the base.",
    ),
}
