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
from tests.mergekit.files import FILES, FRANKENMERGE, LINEAR, SLERP_OF_MODELS
from tests.mergekit.formulas import elected, gradient, slerp, trimmed, windowed
from tests.pairs import LLAMA_CONFIG, llama, near, read, write
from tests.tiny_tokenizers import save, words

LAYERS = 4
Tensors = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, and three models that were made from it, of four layers, in float32, with one tokenizer."""
    root = tmp_path_factory.mktemp("models")
    base = llama(dtype=torch.float32, layers=LAYERS)
    config = {**LLAMA_CONFIG, "num_hidden_layers": LAYERS}
    write(root / "base", base, config=config)
    for seed, name in enumerate(("sft", "math", "code")):
        write(root / name, near(base, seed=seed + 1), config=config)
    for path in root.iterdir():
        save(words([f"word{i}" for i in range(20)]), path)
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
    """The value of a parameter for a tensor of these models."""
    return gradient(setting, name, LAYERS)


def reference(kind: str, of: dict[str, dict[str, Tensor]], name: str) -> Tensor:
    """What mergekit's documentation says of a tensor, for the file of this kind."""
    base, sft, math, code = (of[model][name] for model in ("base", "sft", "math", "code"))
    if kind == "linear":
        return (0.75 * sft + 0.5 * math) / 1.25
    if kind == "slerp":
        setting = [
            {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
            {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
            {"value": 0.5},
        ]
        return slerp(value(setting, name), base, sft)
    if kind == "ties":
        densities = [value([1, 0.7, 0.1], name), 0.5, 0.33]
        weights = [1, value([0, 0.3, 0.7, 1], name), 0.5 if "mlp" in name else 0]
        deltas = [trimmed(W - base, d) for W, d in zip((sft, math, code), densities, strict=True)]
        return base + elected(deltas, weights)
    if kind == "task_arithmetic":
        return base + 1.1 * (0.4 * (sft - base) - 0.2 * (math - base))
    if kind == "model_stock":
        deltas = [W - base for W in (sft, math, code)]
        pairs = [(0, 1), (0, 2), (1, 2)]
        cosine = sum(torch.cosine_similarity(deltas[i], deltas[j], dim=-1) for i, j in pairs) / 3
        t = (3 * cosine / (1 + 2 * cosine)).unsqueeze(-1)
        return base + t * sum(deltas) / 3
    if kind == "breadcrumbs":
        return base + 0.5 * windowed(sft - base, 0.9, 0.02) + 0.3 * windowed(math - base, 0.85, 0.01)
    assert kind == "nuslerp"
    if base.ndim == 1:
        return base + slerp(0.75, sft - base, math - base)
    columns = zip((sft - base).T, (math - base).T, strict=True)
    return base + torch.stack([slerp(0.75, a, b) for a, b in columns], dim=1)


def check(out: Path, expected: Callable[[str], Tensor], tolerance: float) -> None:
    for name, tensor in read(out).items():
        reference = expected(name)
        assert (tensor.double() - reference).norm() <= tolerance * reference.norm(), name


def doubles(models: Path) -> dict[str, dict[str, Tensor]]:
    return {
        path.name: {name: tensor.double() for name, tensor in read(path).items()} for path in sorted(models.iterdir())
    }


KINDS = ("linear", "slerp", "ties", "task_arithmetic", "model_stock", "breadcrumbs", "nuslerp")
TOLERANCES = {"float16": 1e-3, "bfloat16": 8e-3, None: 2e-6}  # the rounding of the output's dtype


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(kind: str, models: Path, file: Callable[[str], Path], tmp_path: Path):
    """Each tensor is what the documentation says, in the dtype that the file names."""
    surgery.apply(file(FILES[kind][0]), (), tmp_path / "out")
    of = doubles(models)
    dtype = FILES[kind][1].get("output", {}).get("dtype")
    check(tmp_path / "out", lambda name: reference(kind, of, name), TOLERANCES[dtype])
    assert {tensor.dtype for tensor in read(tmp_path / "out").values()} == {getattr(torch, dtype or "float32")}


@pytest.mark.parametrize("kind", ["dare_ties", "della"])
def test_random_kinds(kind: str, models: Path, file: Callable[[str], Path], tmp_path: Path):
    """The same bytes in each run; where nothing is dropped they are those of election and sum."""
    for out in ("one", "two"):
        surgery.apply(file(FILES[kind][0]), (), tmp_path / out)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    text = re.sub("density: [0-9.]+", "density: 1", FILES[kind][0])
    surgery.apply(file(f"{text}out_dtype: float32\n"), (), tmp_path / "all")
    of = doubles(models)
    weights, factor = ([0.4, 0.3], 1.0) if kind == "dare_ties" else ([1.0, 1.0], 0.9)

    def everything(name: str) -> Tensor:
        base, *others = (of[model][name] for model in ("base", "sft", "math"))
        weighted = torch.stack([w * (W - base) for w, W in zip(weights, others, strict=True)])
        agree = torch.sign(weighted) == torch.where(weighted.sum(0) >= 0, 1, -1)
        return base + factor * (weighted * agree).sum(0)

    check(tmp_path / "all", everything, 1e-6)


def test_frankenmerge(models: Path, file: Callable[[str], Path], tmp_path: Path):
    """Layers of one model after those of another; the embedding of the first slice, norm and head of the last."""
    surgery.apply(file(FRANKENMERGE), (), tmp_path / "out")
    base, sft = (read(models / name) for name in ("base", "sft"))
    out = read(tmp_path / "out")
    assert len(out) == 6 * 9 + 3
    for name, tensor in out.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        number = int(layer[1]) if layer else 0
        source = base if number < 3 and name not in ("lm_head.weight", "model.norm.weight") else sft
        origin = name if number < 3 else name.replace(f"layers.{number}.", f"layers.{number - 2}.")
        assert torch.equal(tensor, source[origin].bfloat16()), name


STACKED = """\
slices:
  - sources:
      - {model: MODELS/base, layer_range: [0, 2]}
      - {model: MODELS/sft, layer_range: [1, 3]}
    parameters: {t: [0.1, 0.9]}
  - sources:
      - {model: MODELS/base, layer_range: [1, 4]}
      - {model: MODELS/sft, layer_range: [1, 4]}
    parameters: {t: [{filter: mlp, value: [0.3, 0.7]}, {value: 0.2}]}
merge_method: slerp
base_model: MODELS/base
"""


def test_gradients_run_over_each_slice(models: Path, file: Callable[[str], Path], tmp_path: Path):
    """From its first to its last layer; the embedding has the first slice's t at 0, norm and head the last one's."""
    surgery.apply(file(STACKED), (), tmp_path / "out")
    of = doubles(models)
    sources = [(0, 1), (1, 2), (1, 1), (2, 2), (3, 3)]  # layers of base and of sft
    of_mlp = [0.1, 0.9, 0.3, 0.5, 0.7]

    def expected(name: str) -> Tensor:
        layer = re.search(r"layers\.(\d+)\.", name)
        if layer is None:
            return slerp(0.1 if "embed" in name else 0.2, of["base"][name], of["sft"][name])
        i = int(layer[1])
        a, b = (name.replace(f"layers.{i}.", f"layers.{source}.") for source in sources[i])
        return slerp(of_mlp[i] if i < 2 or "mlp" in name else 0.2, of["base"][a], of["sft"][b])

    check(tmp_path / "out", expected, 2e-6)


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

    def expected(name: str) -> Tensor:
        return value(weight, name) * of["sft"][name] + value([0.1, 0.2, 0.9], name) * of["base"][name]

    check(tmp_path / "out", expected, 1e-6)


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


def test_settings_of_the_output(file: Callable[[str], Path], tmp_path: Path, surgery_command: Run):
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
    (remark,) = surgery.plan(file(text)).remarks
    assert remark.startswith("steps[0]: a rule for `*mpl*` selects no tensor; the next one counts for: ")
    with pytest.raises(PlanError, match=r"expected 2, for the roles `sft`, `math`"):
        surgery.plan(file(LINEAR), [tmp_path])
