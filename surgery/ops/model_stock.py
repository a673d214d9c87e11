"""Model Stock: the average of several models, moved towards their base as far as they disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from surgery.ops.base import Kind, Role
from surgery.ops.geometric import Each, GeometricOp

if TYPE_CHECKING:
    from torch import Tensor

SINGULAR = 1e-5  # of 1 + (k - 1) cos, from which on t is not known: rounding leaves it with an error of about 1e-6


class ModelStock(GeometricOp):
    """W' = t mean_i(W_i) + (1 - t) b, with t = k cos / (1 + (k - 1) cos) for k models.

    cos is the mean cosine between two of the task vectors W_i - b: of whole tensors, or with `filter_wise` of each row,
    which then has its own t. Equal models give t = 1, orthogonal task vectors t = 0. Where 1 + (k - 1) cos = 0, as for
    two that are opposite, t has a pole and the result is b, as in mergekit; close to it t is as large as the formula
    has it. A task vector that is 0 has the cosine 0. (mergekit takes cosines between short vectors, |d_i| |d_j| < 1e-6,
    for smaller than they are; here they do not depend on the length.)

    Source: Jang, Yun, Han 2024, Model Stock: All we need is just a few fine-tuned models, arXiv 2403.19522.
    """

    kind: ClassVar[Kind] = "rows"

    op: Literal["model_stock"]
    base: Role = Field(description="the role of the model that the others were made from")
    models: tuple[Role, ...] = Field(min_length=2, description="the roles of models that were made from `base`")
    filter_wise: bool = Field(default=False, description="whether every row has its own angle and its own t")

    @property
    def each(self) -> Each:
        return "rows" if self.filter_wise else "tensors"

    def formula(self, products: Tensor) -> Tensor:
        return ratio(products)


def ratio(products: Tensor) -> Tensor:
    """t / k for each task vector, [k, ...], from their inner products [k, k, ...]."""
    import torch

    from surgery.ops.geometry import lengths_and_cosines

    k = len(products)
    _, cosines = lengths_and_cosines(products)
    first, second = torch.triu_indices(k, k, 1)
    cosine = cosines[first, second].mean(0)
    denominator = 1 + (k - 1) * cosine
    t = torch.where(denominator.abs() < SINGULAR, 0.0, k * cosine / denominator)
    return (t / k).expand(k, *t.shape)
