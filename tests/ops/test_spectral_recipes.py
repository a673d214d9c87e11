"""The bundled recipes of the spectral merges, on small checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import surgery
from surgery.select import Select
from tests.ops.test_iso import iso
from tests.ops.test_knots import knots
from tests.ops.test_tsv import tsv
from tests.ops.whole import edited
from tests.pairs import files, llama, near, read, write

MERGES = {
    "merge-tsv": tsv(("first", "second")),
    "merge-iso-c": iso("iso_c", ("first", "second")),
    "merge-iso-cts": iso("iso_cts", ("first", "second")),
    "merge-knots": knots(("first", "second")),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two models made from it, in float32."""
    root = tmp_path_factory.mktemp("three")
    base = llama(dtype=torch.float32, width=16)
    tuned = [near(base, seed=seed) for seed in (1, 2)]
    return [write(root / str(i), tensors) for i, tensors in enumerate((base, *tuned))]


def is_matrix(name: str) -> bool:
    return ".layers." in name and ("_proj." in name)


@pytest.mark.parametrize("name", MERGES)
def test_matrices_are_merged_and_the_rest_is_averaged(three: list[Path], tmp_path: Path, name: str) -> None:
    """The operation's result in attention and MLP; in norms, embeddings and head the average of the task vectors."""
    base, first, second = (read(path) for path in three)
    out = read(surgery.apply(name, three, tmp_path / "out", workers=2).out)
    for tensor, found in out.items():
        if is_matrix(tensor):
            sources: dict[str, Tensor] = {"base": base[tensor], "first": first[tensor], "second": second[tensor]}
            expected = edited(MERGES[name], base[tensor], sources)
        else:
            expected = (first[tensor] + second[tensor]) / 2
        assert torch.allclose(found, expected, atol=1e-5), tensor


@pytest.mark.parametrize("name", [*MERGES, "suppress-intruders", "denoise-task-vector"])
def test_bytes_do_not_depend_on_the_workers(three: list[Path], tmp_path: Path, name: str) -> None:
    """One worker or two; and the plan's memory is enough for it to run at the least that it asks for."""
    models = three if name in MERGES else three[:2]
    one = surgery.apply(name, models, tmp_path / "one", workers=1, memory=surgery.plan(name, models).peak_memory(1))
    two = surgery.apply(name, models, tmp_path / "two", workers=2)
    tensors = [{n: data for n, data in files(made.out).items() if n.endswith(".safetensors")} for made in (one, two)]
    assert tensors[0] == tensors[1]


def test_factors_may_be_graded(three: list[Path], tmp_path: Path) -> None:
    """Over depth and by rules, as any number."""
    step = {
        "op": "tsv",
        "base": "base",
        "models": ["first", "second"],
        "weights": {"first": [0, 1], "second": [{"tensors": "mlp", "value": 0.5}, {"value": 0}]},
        "alpha": [{"tensors": "*.q_proj.*", "value": 0}, {"value": 1}],
    }
    recipe = {"name": "x", "models": ["base", "first", "second"], "start": "base", "steps": [step]}
    base, out = read(three[0]), read(surgery.apply(recipe, three, tmp_path / "out").out)
    same = {name for name, tensor in out.items() if torch.equal(tensor, base[name])}
    matrices = {name for name in base if is_matrix(name)}
    expected = {name for name in matrices if "q_proj" in name or ("layers.0.self_attn" in name)}
    assert same & matrices == expected


def test_their_scope_is_that_of_spectral_operations() -> None:
    """Attention and MLP, unless the recipe says otherwise."""
    for op in MERGES.values():
        assert op.natural == Select(layers=op.natural.layers, tensors=("attention", "mlp"))
