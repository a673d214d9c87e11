"""Advice follows from the figures, and its commands run."""

from __future__ import annotations

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery.analysis.advice import advise
from surgery.analysis.comparison import Comparison
from tests.analysis.comparisons import comparison
from tests.pairs import llama, near, write


def with_columns(found: Comparison, **columns: object) -> Comparison:
    """The comparison with columns of `matrices` replaced."""
    return dataclasses.replace(found, matrices=found.matrices.assign(**columns))


def commands(found: Comparison) -> list[str]:
    """All commands that are proposed."""
    return [command for item in advise(found) for command in item.commands]


def test_equal_models_need_nothing() -> None:
    """One sentence, no command."""
    (item,) = advise(with_columns(comparison(), equal=True))
    assert item.commands == ()
    assert "nothing to restore" in item.text


@pytest.mark.parametrize(
    ("cosine", "recipe"), [(0.95, "restore-top-20pct"), (0.4, "restore-top-20pct-rotate"), (0.79, "-rotate")]
)
def test_the_formula_fits_how_far_directions_turned(cosine: float, recipe: str) -> None:
    """The published one where matching vectors are close, `rotate` where its factors would not be orthonormal."""
    first = commands(with_columns(comparison(), cos_left=cosine, cos_right=cosine))[0]
    assert shlex.split(first)[:2] == ["surgery", "apply"]
    assert shlex.split(first)[2].endswith(recipe)


def test_layers_that_stand_out_are_named() -> None:
    """A quarter of the layers with far more rotation than the rest; none where all are alike."""
    found = comparison(layers=8)
    rotation = found.matrices.layer.isin([5, 6]) * 0.5 + 0.1
    assert any("--set layers=5-6" in c for c in commands(with_columns(found, rotation=rotation)))
    assert not any("layers=" in c for c in commands(with_columns(found, rotation=0.1)))
    assert not any("layers=" in c for c in commands(with_columns(comparison(layers=2), rotation=0.1)))


def test_one_layer_that_stands_out() -> None:
    """It is one layer, and `it`."""
    found = comparison(layers=4)
    (item,) = [
        i for i in advise(with_columns(found, rotation=(found.matrices.layer == 1) * 0.5 + 0.1)) if "Layer" in i.text
    ]
    assert item.text.startswith("Layer 1 rotated most")
    assert item.text.endswith("Restore it alone:")


@pytest.mark.parametrize("decoder", ["", "vision.blocks"])
def test_bands_are_the_decoders(decoder: str) -> None:
    """Recipes mean its layers: no band of another stack, nor where the decoder has no matrices."""
    found = comparison(layers=8)
    found = with_columns(found, rotation=found.matrices.layer.isin([5, 6]) * 0.5 + 0.1)
    assert not any("layers=" in c for c in commands(dataclasses.replace(found, decoder=decoder)))


def test_without_directions_none_are_put_back() -> None:
    """A base of zeros has none: the average is all that is proposed and scored."""
    found = with_columns(
        comparison(), cos_left=math.nan, cos_right=math.nan, rotation=math.nan, relative_change=math.inf
    )
    proposed = commands(found)
    assert [shlex.split(command)[1:3] for command in proposed] == [["apply", "wise-ft"], ["eval", "general_points"]]
    assert proposed[-1].endswith(" averaged")
    assert "restored" not in proposed[-1]


def test_models_in_directories_are_named_by_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they exist, and unless what was typed is wanted; names on a hub stay as they are."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    found = dataclasses.replace(comparison(), models={"base": "org/model", "sft": "mine"})
    assert f"surgery apply wise-ft org/model {tmp_path}/mine averaged --set alpha=0.5" in commands(found)
    (typed,) = [c for item in advise(found, absolute=False) for c in item.commands if "wise-ft" in c]
    assert typed == "surgery apply wise-ft org/model mine averaged --set alpha=0.5"


def test_the_control_is_proposed_where_values_hardly_moved() -> None:
    """And not where they moved as much as everything else."""
    steady = with_columns(comparison(), values_change=1e-4, relative_change=0.05)
    assert any("values-only" in c for c in commands(steady))
    assert not any("values-only" in c for c in commands(with_columns(steady, values_change=0.05)))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("models", [("base", "sft"), ("base", "sft", "rl")])
def test_averaging_and_scoring_always_stand_beside(models: tuple[str, ...], quick: bool) -> None:
    """No spectral edit without its baseline, and no promise without a score."""
    found = commands(comparison(models, quick=quick))
    assert any(" wise-ft " in command for command in found)
    assert found[-1].startswith("surgery eval ")


def test_a_third_model_is_told_how_far_it_went_back() -> None:
    """In the direction that it took."""
    found = comparison(("base", "sft", "rl"))
    assert not any("rl moved" in item.text for item in advise(with_columns(found, moved_back=math.nan)))
    texts = " ".join(item.text for item in advise(with_columns(found, moved_back=0.25)))
    assert "rl moved 25 % of the way that sft had gone back towards base" in texts
    texts = " ".join(item.text for item in advise(with_columns(found, moved_back=1e-5)))
    assert "rl moved neither back towards base nor further" in texts
    texts = " ".join(item.text for item in advise(with_columns(found, moved_back=-0.1)))
    assert "rl moved 10 % of the way that sft had gone further away from base" in texts


def test_frozen_matrices_are_counted() -> None:
    """What did not change needs no edit."""
    found = comparison(equal=["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"])
    assert any("1 of 28 matrices did not change at all" in item.text for item in advise(found))


def vision_language() -> dict[str, torch.Tensor]:
    """As of a LLaVA model: a vision tower of six layers, and a decoder of four."""
    decoder = {f"language_model.{name}": tensor for name, tensor in llama(layers=4, width=16).items()}
    generator = torch.Generator().manual_seed(7)
    shapes = {f"self_attn.{name}": (24, 24) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    shapes |= {"mlp.fc1": (48, 24), "mlp.fc2": (24, 48)}
    tower = {
        f"vision_tower.encoder.layers.{i}.{name}.weight": torch.randn(shape, generator=generator).bfloat16()
        for i in range(6)
        for name, shape in shapes.items()
    }
    return decoder | tower


LLAVA = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"tie_word_embeddings": False}}


@pytest.mark.parametrize(
    ("base", "config", "turned"),
    [
        (llama(layers=4, width=16), None, ".layers.3."),
        (vision_language(), LLAVA, "language_model.model.layers.3."),
        (vision_language(), LLAVA, "vision_tower.encoder.layers.5."),
    ],
    ids=["text", "vision, decoder turned", "vision, tower turned"],
)
def test_every_command_can_be_planned(
    base: dict[str, torch.Tensor], config: dict[str, Any] | None, turned: str, tmp_path: Path
) -> None:
    """For real checkpoints with three models and a space in a path, as they would be pasted."""
    sft = near(base, change=0.4)
    sft |= {name: near(sft, seed=5, change=2.0)[name] for name in sft if turned in name}
    models = {"base": base, "sft": sft, "rl": near(sft)}
    paths = [write(tmp_path / "my models" / name, tensors, config=config) for name, tensors in models.items()]
    found = surgery.diff(*paths)
    proposed = [shlex.split(command) for command in commands(found)]
    applied = [words for words in proposed if words[1] == "apply"]
    band = set() if "vision" in turned else {"restore-layer-band"}
    assert {words[2] for words in applied} & {"restore-layer-band"} == band
    assert {words[2] for words in applied} >= {"restore-top-20pct-rotate", "wise-ft", "rl-with-sft-directions"}
    for _, _, recipe, one, other, _out, *rest in applied:
        settings = dict(word.split("=", 1) for word in rest if word != "--set")
        assert surgery.plan(recipe, [one, other], settings=settings).tensors
