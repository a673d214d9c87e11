"""Recipe files of mergekit, run as they are, against a reference that follows mergekit's rules for parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.errors import PlanError
from tests.commands import Run
from tests.mergekit.files import LINEAR, SLERP_OF_MODELS
from tests.pairs import llama, near, read, write

LAYERS = 4
Tensors = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, and three models that were made from it, of four layers, in float32."""
    root = tmp_path_factory.mktemp("models")
    base = llama(dtype=torch.float32, layers=LAYERS)
    write(root / "base", base)
    for seed, name in enumerate(("sft", "math", "code")):
        write(root / name, near(base, seed=seed + 1))
    return root


@pytest.fixture
def file(models: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Writes a file whose models are those."""

    def written(text: str) -> Path:
        path = tmp_path / "merge.yml"
        path.write_text(text.replace("MODELS", str(models)))
        return path

    return written


def value(setting: Any, name: str) -> float:
    """The value of a parameter for a tensor: the first filter that is in its name; a gradient from 0 to 1 over the
    layers, 0 outside of them.
    """
    if isinstance(setting, list) and isinstance(setting[0], dict):
        setting = next(item["value"] for item in setting if item.get("filter", "") in name)
    if not isinstance(setting, list):
        return float(setting)
    layer = re.search(r"layers\.(\d+)\.", name)
    depth = int(layer[1]) / (LAYERS - 1) if layer else 0.0
    points = torch.linspace(0, 1, len(setting)).tolist()
    for (x0, y0), (x1, y1) in zip(zip(points, setting), list(zip(points, setting))[1:], strict=False):
        if depth <= x1 + 1e-9:
            return float(y0 + (depth - x0) / (x1 - x0) * (y1 - y0))
    return float(setting[-1])


def slerp(t: float, a: Tensor, b: Tensor) -> Tensor:
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    if angle.cos() > 0.9995:
        return (1 - t) * a + t * b
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def check(out: Path, expected: Callable[[str], Tensor], tolerance: float) -> None:
    for name, tensor in read(out).items():
        reference = expected(name)
        assert (tensor.double() - reference).norm() <= tolerance * reference.norm(), name


def doubles(models: Path) -> dict[str, dict[str, Tensor]]:
    return {
        path.name: {name: tensor.double() for name, tensor in read(path).items()} for path in sorted(models.iterdir())
    }


def test_linear(models: Path, file: Callable[[str], Path], tmp_path: Path):
    """The weighted mean, in the dtype that the file names."""
    surgery.apply(file(LINEAR), (), tmp_path / "out")
    of = doubles(models)
    check(tmp_path / "out", lambda name: (0.75 * of["sft"][name] + 0.5 * of["math"][name]) / 1.25, 1e-3)
    assert {tensor.dtype for tensor in read(tmp_path / "out").values()} == {torch.float16}


def test_slerp_with_gradients_and_filters(models: Path, file: Callable[[str], Path], tmp_path: Path):
    """Each tensor has its own t; the base is at t = 0 wherever it is listed."""
    surgery.apply(file(SLERP_OF_MODELS), (), tmp_path / "out")
    of = doubles(models)
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    check(tmp_path / "out", lambda name: slerp(value(t, name), of["base"][name], of["sft"][name]), 1e-6)


def test_linear_with_settings_at_every_level(models: Path, file: Callable[[str], Path], tmp_path: Path):
    """A model's own setting, then that of the file; weights that are not divided by their sum."""
    text = """\
merge_method: linear
base_model: MODELS/base
models:
  - model: MODELS/sft
    parameters:
      weight:
        - {filter: mlp.down, value: [2, 1]}
        - {filter: norm, value: 0.25}
  - {model: MODELS/base, parameters: {weight: [0.1, 0.2, 0.9]}}
parameters:
  weight: [{filter: v_proj, value: -1}, {value: 0.5}]
  normalize: false
"""
    surgery.apply(file(text), (), tmp_path / "out")
    of = doubles(models)
    weight = [
        {"filter": "mlp.down", "value": [2, 1]},
        {"filter": "norm", "value": 0.25},
        {"filter": "v_proj", "value": -1},
        {"value": 0.5},
    ]

    def reference(name: str) -> Tensor:
        return value(weight, name) * of["sft"][name] + value([0.1, 0.2, 0.9], name) * of["base"][name]

    check(tmp_path / "out", reference, 1e-6)


def test_commands(models: Path, file: Callable[[str], Path], tmp_path: Path, surgery_command: Run):
    """A file runs without models, and with others; its notes go to stderr; its recipe makes the same bytes."""
    path = file(LINEAR.replace("merge_method", "parameters: {int8_mask: true}\nmerge_method"))
    note = "note: merge.yml:8 parameters.int8_mask: no effect with `linear`, in mergekit either\n"
    code, out, err = surgery_command("plan", path)
    assert (code, err) == (0, note)
    assert "steps[0] linear of sft, math" in out
    code, _, err = surgery_command("apply", path, tmp_path / "out")
    assert code == 0
    assert note in err
    code, out, err = surgery_command("convert", path)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"# surgery apply RECIPE {models}/sft {models}/math OUT"
    (tmp_path / "recipe.yaml").write_text(out)
    models_given = (models / "sft", models / "math")
    assert surgery_command("apply", tmp_path / "recipe.yaml", *models_given, tmp_path / "again")[0] == 0
    assert surgery_command("apply", path, *models_given, tmp_path / "given")[0] == 0
    made = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again", "given")]
    assert made[0] == made[1] == made[2]
    assert str(models) not in (tmp_path / "out" / "README.md").read_text()
    assert surgery_command("verify", tmp_path / "out")[0] == 0


def test_convert_to_json(file: Callable[[str], Path], models: Path, surgery_command: Run):
    """The recipe in canonical form, the models by role, and the notes."""
    code, out, _ = surgery_command("convert", file(LINEAR), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["recipe"]["steps"][0]["weights"] == [0.75, 0.5]
    assert found["models"] == {"sft": f"{models}/sft", "math": f"{models}/math"}
    assert found["notes"] == []


def test_convert_refuses_recipes_of_ours(surgery_command: Run):
    """There is nothing to convert."""
    code, out, err = surgery_command("convert", "wise-ft")
    assert (code, out) == (1, "")
    assert err == "error: wise-ft.yaml: `wise-ft` is no recipe file of mergekit: expected a map with `merge_method`\n"


def test_settings_of_the_output(models: Path, file: Callable[[str], Path], tmp_path: Path, surgery_command: Run):
    """`--set` reaches the converted recipe."""
    code, _, _ = surgery_command("apply", file(LINEAR), tmp_path / "out", "--set", "output.dtype=bfloat16")
    assert code == 0
    assert {tensor.dtype for tensor in read(tmp_path / "out").values()} == {torch.bfloat16}


def test_faults_of_the_plan_have_the_files_lines(file: Callable[[str], Path], tmp_path: Path):
    """A filter that no tensor has, a tensor without a weight, and a model that is not there."""
    text = LINEAR.replace("weight: 0.5", "weight: {filter: mlp, value: 1}")
    with pytest.raises(PlanError, match=r"merge\.yml:8 merge_method: no rule gives `lm_head.weight` a value"):
        surgery.plan(file(text))
    text = LINEAR.replace("weight: 0.5", "weight: [{filter: mpl, value: 1}, {value: 2}]")
    with pytest.raises(PlanError, match=r"merge\.yml:8 merge_method: a rule: `\*mpl\*` matches no tensor"):
        surgery.plan(file(text))
    with pytest.raises(PlanError, match=r"expected 2, for the roles `sft`, `math`"):
        surgery.plan(file(LINEAR), [tmp_path])
