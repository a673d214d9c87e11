from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from surgery.ops import OPS, Step
from surgery.ops.base import RESULT
from surgery.ops.whole import Piece
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import Triplets

EXAMPLES: dict[str, dict[str, Any]] = {
    "restore_directions": {"from": "base", "head": "20%"},
    "swap_directions": {"from": "base"},
    "restore_values": {"from": "base"},
    "reset_layers": {"from": "base", "select": {"layers": "first 25%"}},
    "truncate_rank": {"rank": 64},
    "linear": {"models": ["base", "sft"]},
    "slerp": {"models": ["base", "sft"], "t": 0.5},
    "nuslerp": {"models": ["base", "sft"], "weights": [1, 2], "angles": "columns"},
    "multislerp": {"models": ["base", "sft"], "weights": [1, 2]},
    "karcher": {"models": ["base", "sft"], "weights": [1, 2]},
    "model_stock": {"base": "base", "models": ["sft", "result"], "filter_wise": True},
    "nearswap": {"base": "base", "models": ["sft"], "t": 0.001},
    "arcee_fusion": {"base": "base", "models": ["sft"]},
    "passthrough": {"models": ["sft"], "scale": 2},
    "wise_ft": {"base": "base", "models": ["sft"]},
    "lines": {"base": "base", "models": ["sft"], "alpha": 0.2, "beta": 0.8},
    "task_arithmetic": {"base": "base", "models": ["sft"], "lambda": 0.7},
    "ties": {"base": "base", "models": ["sft"], "density": 0.2},
    "dare_linear": {"base": "base", "models": ["sft"], "density": {"sft": 0.5}, "seed": 3},
    "dare_ties": {"base": "base", "models": ["sft"], "density": 0.5},
    "breadcrumbs": {"base": "base", "models": ["sft"], "density": 0.9, "gamma": 0.02},
    "breadcrumbs_ties": {"base": "base", "models": ["sft"], "density": 0.9},
    "della": {"base": "base", "models": ["sft"], "density": 0.5, "epsilon": 0.1},
    "della_linear": {"base": "base", "models": ["sft"], "density": [[0.3, 0.5]], "rescale": False},
    "sce": {"base": "base", "models": ["sft"], "select_topk": 0.1},
    "ram": {"base": "base", "models": ["sft"], "epsilon": 1e-4},
    "ramplus_tl": {"base": "base", "models": ["sft"], "r": 0.2},
    "consensus": {"base": "base", "models": ["sft"], "k": 1, "tall_lambda": 0.4},
    "emr": {"base": "base", "models": ["sft"], "lambda": 1.5},
    "tsv": {"base": "base", "models": ["sft"], "weights": [0.5]},
    "iso_c": {"base": "base", "models": ["sft"]},
    "iso_cts": {"base": "base", "models": ["sft"], "common": "75%"},
    "knots": {"base": "base", "models": ["sft"], "density": 0.5},
    "suppress_intruders": {"from": "base"},
    "procrustes_align": {"from": "base"},
}
ROOT = Path(__file__).parent.parent.parent
STEP: TypeAdapter[Any] = TypeAdapter(Step)


def test_table_and_union_hold_the_same_operations():
    """Every operation of the table is in the union of steps, under the name it declares, and has an example here."""
    assert set(get_args(get_args(Step)[0])) == set(OPS.values())
    for name, op in OPS.items():
        assert get_args(op.model_fields["op"].annotation) == (name,)
    assert EXAMPLES.keys() == OPS.keys()


@pytest.mark.parametrize("name", OPS)
def test_steps_read_back_from_their_plain_data(name: str):
    """A step survives its own serialisation, is hashable, and knows its roles and its cost."""
    step = STEP.validate_python({"op": name, **EXAMPLES[name]}, context={"roles": ("base", "sft")})
    assert type(step) is OPS[name]
    assert STEP.validate_python(step.model_dump(by_alias=True, mode="json", exclude_none=True)) == step
    assert hash(step) == hash(STEP.validate_python({"op": name, **EXAMPLES[name]}))
    if step.kind != "copy":
        assert step.workspace((64, 32)) > 0
        assert step.flops((64, 32)) > 0


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if "from" in example])
def test_roles_must_be_known_and_another(name: str):
    """An unknown role and the running tensor are refused as a source."""
    for role, message in (("bse", "not among the recipe's models: base, sft"), (RESULT, "found `result`")):
        with pytest.raises(ValidationError, match=message):
            STEP.validate_python({"op": name, **EXAMPLES[name], "from": role}, context={"roles": ("base", "sft")})


def test_the_list_of_operations():
    """recipes/README.md has all, in the order of the table, with their files and the papers of their docstrings."""
    text = (ROOT / "recipes" / "README.md").read_text("utf-8").split("## All operations")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \[(\w+)\]\(\.\./(.*?)\) \| (.*?) \| (.*) \|$", text, re.M)
    assert [name for name, *_ in rows] == list(OPS)
    for name, file, result, source in rows:
        assert file == OPS[name].__module__.replace(".", "/") + ".py"
        assert result
        papers = re.findall(r"\[([\d.]+)\]\(https://arxiv\.org/abs/([\d.]+)\)", source)
        assert {number for number, _ in papers} == {link for _, link in papers}
        assert {number for number, _ in papers} == set(re.findall(r"arXiv\s+(\d{4}\.\d{4,5})", OPS[name].__doc__))
        for author in re.findall(r"\b([A-Z]\w+)(?: et al\.)?,? \d{4}", source):
            assert author in OPS[name].__doc__ or author in sys.modules[OPS[name].__module__].__doc__
    readme = (ROOT / "README.md").read_text("utf-8")
    assert {name for name in OPS if f"`{name}`" not in readme} == set()


def test_operations_load_without_torch():
    """A plan knows every operation, its memory and its arithmetic without importing torch."""
    code = (
        "import sys; from surgery.ops.restore_directions import RestoreDirections as R; "
        "op = R.model_validate({'op': 'restore_directions', 'from': 'base', 'head': 8}); "
        "op.workspace((64, 32)), op.flops((64, 32)), op.remark((64, 32)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class _Asked(Decomposer):
    """Remembers what it is asked for of W and of b."""

    def __init__(self, W: Tensor, b: Tensor) -> None:
        self.matrices = {RESULT: W, "base": b}
        self.asked: dict[str, tuple[int, int]] = {}

    def triplets(self, W: Tensor, head: int, tail: int = 0) -> Triplets:
        self.asked[next(role for role, X in self.matrices.items() if X is W)] = (head, tail)
        return super().triplets(W, head, tail)

    def values(self, W: Tensor) -> Tensor:
        self.asked[next(role for role, X in self.matrices.items() if X is W)] = (0, 0)
        return super().values(W)


@pytest.mark.parametrize(
    "step",
    [
        *(
            {"op": "restore_directions", "from": "base", "head": h, "tail": t, "orthogonalize": o, "singular_values": s}
            for h, t in (("20%", 0), ("20%", 3), (0, "10%"), ("all", 0), ("80%", "50%"))
            for o in ("none", "rotate", "polar")
            for s in ("start", "from")
        ),
        {"op": "swap_directions", "from": "base"},
        {"op": "restore_values", "from": "base"},
        {"op": "truncate_rank", "rank": "30%"},
        {"op": "truncate_rank", "rank": "all"},
        {"op": "truncate_rank", "rank": "marchenko_pastur"},
        {"op": "suppress_intruders", "from": "base"},
        {"op": "linear", "models": [RESULT, "base"]},
    ],
    ids=lambda step: " ".join(map(str, step.values())),
)
@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_what_is_decomposed_is_told_beforehand(step: dict[str, Any], shape: tuple[int, int]):
    """`decomposes` names exactly what `edit` asks the decomposer for."""
    op = STEP.validate_python(step, context={"roles": ("base", "sft")})
    generator = torch.Generator().manual_seed(0)
    W, b = (torch.randn(shape, generator=generator) for _ in range(2))
    decomposer = _Asked(W, b)
    op.edit(Piece(W, {"base": b}, 0, decomposer))
    assert op.decomposes(shape) == decomposer.asked
