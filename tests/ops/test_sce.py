from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from surgery.ops.sce import Sce
from tests.ops.whole import edited

GENERATOR = torch.Generator().manual_seed(7)
BASE = torch.randn(20, 15, generator=GENERATOR)
ROLES = ("x", "y", "z")
SIZES = (1e-4, 2e-4, 5e-5)  # as those of fine-tuned models
SOURCES = {"base": BASE} | {
    role: BASE + size * torch.randn(20, 15, generator=GENERATOR) for role, size in zip(ROLES, SIZES, strict=True)
}


def sce(models: tuple[str, ...] = ROLES, **parameters: Any) -> Sce:
    given = {"op": "sce", "base": "base", "models": models, **parameters}
    return Sce.model_validate(given, context={"roles": ("base", *ROLES)})


def formula(sources: dict[str, Tensor], models: tuple[str, ...], select_topk: float) -> Tensor:
    """Select, calculate, erase: in float64, entry by entry, of task vectors as float32 has them."""
    columns = [(sources[role] - sources["base"]).double().flatten().tolist() for role in models]
    entries = list(zip(*columns, strict=True))
    variances = [sum((d - sum(entry) / len(entry)) ** 2 for d in entry) / len(entry) for entry in entries]
    k = int(select_topk * sum(variance > 0 for variance in variances))
    chosen = sorted(range(len(entries)), key=lambda p: -variances[p])[: len(entries) if select_topk == 1 else k]
    squares = [sum(column[p] ** 2 for p in chosen) for column in columns]
    result = sources["base"].double().flatten().clone()
    for p in chosen:
        sign = 1 if sum(entries[p]) >= 0 else -1
        agreeing = [(square, d) for square, d in zip(squares, entries[p], strict=True) if d * sign > 0]
        if agreeing:
            result[p] += sum(square * d for square, d in agreeing) / sum(square for square, _ in agreeing)
    return result.view_as(sources["base"])


@pytest.mark.parametrize("select_topk", [1, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("elements", [7, 1000])
def test_equals_the_formula(select_topk: float, elements: int):
    """In any pieces, to the precision of float32, for changes as small as those of fine-tuning."""
    found = edited(sce(select_topk=select_topk), BASE, SOURCES, elements=elements)
    expected = formula(SOURCES, ROLES, select_topk)
    assert (found - expected).abs().max() < 3e-7
    assert ((found != BASE) == (expected.float() != BASE)).all() or select_topk == 1


def test_weights_are_the_squares_however_small_the_changes():
    """The model that changed most counts most: mergekit would take equal weights below a mean square of 1e-6."""
    base = torch.zeros(2, 8)
    sources = {"base": base, "x": base + 1e-5, "y": base + 3e-5}
    found = edited(sce(("x", "y")), base, sources)
    assert torch.allclose(found, torch.full((2, 8), (1 * 1e-5 + 9 * 3e-5) / 10), rtol=1e-5, atol=0)


def test_ties_are_selected_together():
    """Entries whose variance is that of the last are selected too."""
    base = torch.zeros(6)
    sources = {"base": base, "x": torch.tensor([1.0, 2.0, -2.0, 2.0, 5.0, 0.0]), "y": base}
    found = edited(sce(("x", "y"), select_topk=0.4), base, sources, elements=4)
    assert torch.equal(found, torch.tensor([0.0, 2.0, -2.0, 2.0, 5.0, 0.0]))


@pytest.mark.parametrize("select_topk", [1, 0.5])
def test_one_model_and_equal_models(select_topk: float):
    """They do not vary: all selected they are the result, a share of nothing is the base."""
    equal = {"base": BASE, "x": SOURCES["x"], "y": SOURCES["x"]}
    for models in (("x",), ("x", "y")):
        found = edited(sce(models, select_topk=select_topk), BASE, equal)
        assert torch.allclose(found, SOURCES["x"] if select_topk == 1 else BASE, rtol=0, atol=3e-7)


@pytest.mark.parametrize("select_topk", [1, 0.5])
def test_models_that_are_the_base(select_topk: float):
    """Change nothing, in tensors of any shape, an empty one too."""
    for W in (BASE, BASE[0], BASE.view(2, 10, 15), torch.zeros(0, 3)):
        assert torch.equal(edited(sce(select_topk=select_topk), W, dict.fromkeys(SOURCES, W)), W)


def test_the_order_of_models_does_not_matter():
    """To rounding."""
    forth, back = (edited(sce(models, select_topk=0.5), BASE, SOURCES) for models in (ROLES, ROLES[::-1]))
    assert torch.allclose(forth, back, rtol=0, atol=3e-7)


def test_passes():
    """One for the weights, one to edit, and two for a share."""
    assert (sce().passes, sce(select_topk=0.5).passes) == (2, 4)


def test_out_of_range():
    """A share is between 0 and 1."""
    with pytest.raises(ValidationError, match=r"found `1\.1`; expected a number between 0 and 1"):
        sce(select_topk=1.1)
