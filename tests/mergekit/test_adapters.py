"""Files of mergekit that name models with LoRA adapters: as if those had been merged into their models beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import surgery
from surgery.mergekit import Converted, convert
from surgery.yaml_source import read_yaml
from tests.adapters.peft import factors, merged, write_adapter
from tests.commands import Run
from tests.pairs import llama, near, read, write
from tests.tiny_tokenizers import save, words


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, sft, and the adapters math and code over base."""
    root = tmp_path_factory.mktemp("models")
    base = llama(dtype=torch.float32)
    for name, tensors in {"base": base, "sft": near(base)}.items():
        save(words([f"word{i}" for i in range(20)]), write(root / name, tensors))
    write_adapter(root / "math", factors(base, seed=1))
    write_adapter(root / "code", factors(base, targets=("k_proj",), seed=2), target_modules=["k_proj"])
    return root


def converted(text: str) -> Converted:
    return convert(read_yaml(text, "merge.yml"))


SPELLINGS = {
    "in one": "MODELS/base+MODELS/math",
    "in two": "{model: MODELS/base, lora: MODELS/math}",
    "whole": "{model: {path: MODELS/base, revision: }, lora: {path: MODELS/math}, override_architecture: }",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("tokenizer", ["", "tokenizer_source: union\n"])
def test_adapters_are_merged(spelling: str, tokenizer: str, models: Path, tmp_path: Path):
    """Task vectors of two adapters and a whole model, against PEFT's arithmetic."""
    text = f"""\
models:
  - {{model: {spelling}, parameters: {{weight: 0.5}}}}
  - {{model: MODELS/base+MODELS/code, parameters: {{weight: 0.25}}}}
  - {{model: MODELS/sft, parameters: {{weight: -1}}}}
base_model: MODELS/base
merge_method: task_arithmetic
{tokenizer}"""
    (tmp_path / "merge.yml").write_text(text.replace("MODELS", str(models)))
    surgery.apply(tmp_path / "merge.yml", (), tmp_path / "out")
    base, sft = read(models / "base"), read(models / "sft")
    of_math = merged(base, read(models / "math"))
    of_code = merged(base, read(models / "code"), target_modules=["k_proj"])
    for name, found in read(tmp_path / "out").items():
        W = base[name].double()
        expected = W + 0.5 * (of_math[name] - W) + 0.25 * (of_code[name] - W) - (sft[name].double() - W)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_base_with_an_adapter(models: Path, tmp_path: Path, surgery_command: Run):
    """It is told in the command that runs the converted recipe, and the recipe makes the same bytes."""
    text = f"""\
models: [{{model: {models}/sft}}]
base_model: {{model: {models}/base, lora: {models}/math}}
merge_method: slerp
parameters: {{t: 0.25}}
"""
    (tmp_path / "merge.yml").write_text(text)
    code, out, _ = surgery_command("convert", tmp_path / "merge.yml")
    assert code == 0
    assert out.splitlines()[0] == f"# surgery apply RECIPE {models}/base+{models}/math {models}/sft OUT"
    assert "  - math  # base+math\n  - sft   # sft\n" in out
    (tmp_path / "recipe.yaml").write_text(out)
    surgery.apply(tmp_path / "merge.yml", (), tmp_path / "one")
    surgery.apply(tmp_path / "recipe.yaml", [f"{models}/base+{models}/math", models / "sft"], tmp_path / "two")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("org/a@main+org/lora@v2", "org/a@main+org/lora@v2"),
        ("{model: org/a@main, lora: org/lora@v2}", "org/a@main+org/lora@v2"),
        (
            "{model: {path: org/a, revision: main}, lora: {path: org/lora, revision: v2}}",
            "org/a@main+org/lora@v2",
        ),
        ("{model: org/a, lora: {path: org/lora}}", "org/a+org/lora"),
        ("{model: org/a, lora: }", "org/a"),
    ],
)
def test_spellings_with_revisions(reference: str, expected: str):
    """All that mergekit reads."""
    found = converted(f"models: [{{model: {reference}}}, {{model: org/c}}]\nmerge_method: karcher\n").models
    assert [*found.values()] == [expected, "org/c"]
    assert [*found] == ["lora" if "lora" in expected else "a", "c"]


def test_roles_are_those_of_adapters():
    """Their models are often the same; where adapters are, too, a number tells them apart."""
    text = "models: [{model: a/b+c/x@v1}, {model: a/b+d/x}, {model: a/e+d/x}, {model: a/b}]\nmerge_method: karcher\n"
    assert [*converted(text).models] == ["c-x", "d-x", "d-x-2", "b"]
