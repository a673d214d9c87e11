"""What outputs have in common: jobs, the sizes of their decompositions, their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery.compute import make_tensors
from surgery.jobs import Batch
from surgery.planner import make_plan
from surgery.reader import Reader
from surgery.recipe import load
from surgery.spectral import cost
from surgery.spectral.decomposer import Decomposer
from surgery.unfinished import Places
from surgery.writer import Writer, create_files
from tests.pairs import near, write
from tests.spectral.test_cost import peak

NAME = "model.layers.0.mlp.up_proj.weight"
SWAP = {"op": "swap_directions", "from": "base"}


def restore(head: str, tail: str = "0%", **keys: Any) -> dict[str, Any]:
    return {"op": "restore_directions", "from": "base", "head": head, "tail": tail, **keys}


def batch(tmp_path: Path, *steps: dict[str, Any], shape: tuple[int, int] = (60, 40)) -> Batch:
    """One plan for each step, of a model with one matrix."""
    base = {NAME: torch.randn(shape, generator=torch.Generator().manual_seed(0)), "model.norm.weight": torch.ones(3)}
    write(tmp_path / "base", base)
    write(tmp_path / "sft", near(base))
    models = [surgery.inspect(tmp_path / role) for role in ("base", "sft")]
    roles = dict(zip(("base", "sft"), models, strict=True))
    plans = []
    for step in steps:
        used = roles if step["op"] != "truncate_rank" or "of" in step else {"sft": roles["sft"]}
        plans.append(make_plan(load({"name": "r", "models": list(used), "steps": [step]}), used))
    return Batch(plans)


@pytest.mark.parametrize(
    ("steps", "sft", "base"),
    [
        ([restore("10%"), restore("30%")], (12, 0), (12, 0)),
        ([restore("10%"), restore("5%", "20%")], (4, 8), (4, 8)),
        ([restore("60%"), restore("5%", "50%")], (40, 0), (40, 0)),
        ([restore("10%"), SWAP], (4, 0), (40, 0)),
        ([SWAP, restore("all")], (0, 0), (40, 0)),
        ([restore("10%"), {"op": "truncate_rank", "rank": "25%"}], (10, 0), None),
        ([restore("10%"), {"op": "truncate_rank", "rank": "marchenko_pastur"}], (40, 0), None),
        ([restore("30%"), {"op": "suppress_intruders", "from": "base"}], (12, 0), (40, 0)),
        ([restore("10%"), {"op": "truncate_rank", "rank": 8, "of": "base"}], None, None),
        ([restore("10%"), {"op": "tsv", "base": "base", "models": ["sft"]}], None, None),
        ([restore("10%")], None, None),
        ([restore("10%"), {"op": "linear", "models": ["base", "sft"]}], None, None),
    ],
)
def test_one_decomposition_serves_all(tmp_path: Path, steps: list[Any], sft: object, base: object) -> None:
    """The smallest of which all that several outputs ask for are parts; what one alone asks for has no size."""
    job, *copies = batch(tmp_path, *steps).jobs
    sizes = {each.model: size for each, size in job.sizes.items()}
    assert (sizes.get(1), sizes.get(0)) == (sft, base)
    assert len(job.parts) == len(steps)
    assert {each.model for each in job.inputs} == {0, 1}
    assert sum(len(each.parts) for each in copies) == len(steps)


def test_others_are_known_where_they_decide_over_bits(tmp_path: Path) -> None:
    """The digest is None for those that get what they ask for, and the same whatever the order."""
    made = batch(tmp_path, restore("10%"), restore("30%"), {"op": "linear", "models": ["base", "sft"]})
    assert [made.others(i) is None for i in range(3)] == [False, True, True]
    assert Batch(made.plans[::-1]).others(2) == made.others(0)
    assert Batch(made.plans[:1]).others(0) is None
    assert Batch(made.plans[1:]).others(0) is None


def test_a_job_of_one_takes_the_memory_that_its_plan_says(tmp_path: Path) -> None:
    """`plan` and `apply` speak of the same bytes."""
    made = batch(tmp_path, restore("10%", orthogonalize="rotate"))
    (plan,) = made.plans
    assert [job.memory for job in made.jobs] == [plan.memory(tensor) for tensor in plan.tensors]
    assert made.peak_memory(4) == plan.peak_memory(4)


@pytest.mark.parametrize("shape", [(320, 320), (160, 2300)])
@pytest.mark.parametrize(
    "steps",
    [
        [restore("5%"), restore("20%"), restore("30%", orthogonalize="rotate")],
        [restore("5%"), restore("20%", "20%"), SWAP],
        [restore("50%"), {"op": "linear", "models": ["base", "sft"]}, {"op": "truncate_rank", "rank": "50%"}],
    ],
    ids=["heads", "full", "mixed"],
)
def test_memory_bounds_what_is_allocated(tmp_path: Path, steps: list[Any], shape: tuple[int, int]) -> None:
    """Buffers, what is kept for all, and the edits: never more in torch tensors at once than `memory` says."""
    made = batch(tmp_path, *steps, shape=shape)
    job = made.jobs[0]
    writers = {i: Writer(Places(tmp_path / str(i)), plan, {}) for i, plan in enumerate(made.plans)}
    create_files(list(writers.values()))
    readers = [Reader(model) for model in made.models]
    cpu = torch.device("cpu")
    used = peak(lambda: list(make_tensors(job, job.parts, readers, writers, cpu, lambda: False, Decomposer())))
    assert 0.1 * (job.memory - cost.LIBRARY) < used < job.memory - cost.LIBRARY
    for opened in (*readers, *writers.values()):
        opened.close()
