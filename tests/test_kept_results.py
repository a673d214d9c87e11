"""What operations on matrices made is kept for those that measure it."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery.compute import make_tensors
from surgery.jobs import Batch
from surgery.plan import Plan
from surgery.reader import Reader
from surgery.spectral import cost
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import Triplets
from surgery.unfinished import Places
from surgery.writer import Writer, create_files
from tests.pairs import near, read, write
from tests.spectral.test_cost import peak

MATRIX, STACK = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.experts.up_proj"
RESTORE: dict[str, Any] = {"op": "restore_directions", "from": "base", "head": "20%"}
TIES: dict[str, Any] = {"op": "ties", "base": "base", "models": ["result", "rl"], "density": 0.5, "rescale": True}
HALVE: dict[str, Any] = {"op": "linear", "models": ["result", "rl"]}
TRUNCATE: dict[str, Any] = {"op": "truncate_rank", "rank": "50%"}
ROLES = ["base", "sft", "rl"]


@pytest.fixture(params=[MATRIX, STACK])
def models(tmp_path: Path, request: pytest.FixtureRequest) -> list[Path]:
    """Three models of one matrix, or of a stack of three."""
    shape = (320, 300) if request.param == MATRIX else (3, 120, 100)
    base = {request.param: torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    tensors = [base, near(base), near(base, seed=2)]
    return [write(tmp_path / role, each) for role, each in zip(ROLES, tensors, strict=True)]


def planned(models: list[Path], *steps: dict[str, Any]) -> Plan:
    return surgery.plan({"name": "r", "models": ROLES, "start": "sft", "steps": list(steps)}, models)


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """How often each matrix was decomposed, by the sum of its entries."""
    found: Counter[float] = Counter()
    real = Decomposer.triplets

    def counted(self: Decomposer, W: torch.Tensor, head: int, tail: int = 0) -> Triplets:
        found[float(W.sum())] += 1
        return real(self, W, head, tail)

    monkeypatch.setattr(Decomposer, "triplets", counted)
    return found


def make(plan: Plan, out: Path) -> tuple[dict[str, torch.Tensor], int, int]:
    """The tensors of a plan of one, the most memory that it took, and what the plan says of that."""
    batch = Batch([plan])
    (job,) = batch.jobs
    writer = Writer(Places(out), plan, {})
    create_files([writer])
    readers = [Reader(model) for model in batch.models]
    device = torch.device("cpu")
    used = peak(lambda: list(make_tensors(job, job.parts, readers, {0: writer}, device, lambda: False, Decomposer())))
    found = {name: tensor.clone() for name, tensor in read(writer.partial).items()}
    for opened in (*readers, writer):
        opened.close()
    return found, used, job.memory - cost.LIBRARY


@pytest.mark.parametrize(
    ("steps", "kept_after", "matrices"),
    [
        ([RESTORE, TIES], {1}, 2),
        ([RESTORE, HALVE, TIES], {1}, 2),
        ([RESTORE, TRUNCATE, TIES], {2}, 3),
        ([RESTORE, TIES, TRUNCATE, TIES], {1, 3}, 3),
        ([TIES, RESTORE], set(), 2),
        ([RESTORE, HALVE], set(), 2),
    ],
)
def test_each_matrix_is_decomposed_once(
    models: list[Path],
    decomposed: Counter[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[dict[str, Any]],
    kept_after: set[int],
    matrices: int,
) -> None:
    """However often a later operation measures the result; to the bytes of making it anew, within the memory told."""
    plan = planned(models, *steps)
    (tensor,) = plan.tensors
    assert tensor.kept_after == kept_after
    found, used, told = make(plan, tmp_path / "kept")
    assert set(decomposed.values()) == {1}
    assert len(decomposed) == matrices * tensor.matrix_count
    assert used < told
    monkeypatch.setattr(import_module("surgery.plan"), "KEPT_ELEMENTS", 10)
    assert not tensor.kept_after
    again, *_ = make(plan, tmp_path / "anew")
    for name, result in found.items():
        assert torch.equal(result, again[name])


def test_it_is_in_the_peak_memory(models: list[Path]) -> None:
    """Four bytes an entry of the tensor more than for an operation that measures nothing."""
    one, other = planned(models, RESTORE, TIES), planned(models, RESTORE, {**TIES, "density": 1})
    elements = one.tensors[0].slot.elements
    assert one.memory(one.tensors[0]) - other.memory(other.tensors[0]) >= 4 * elements
    assert one.peak_memory(1) == Batch([one]).peak_memory(1)
