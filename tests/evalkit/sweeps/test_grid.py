"""From a sweep to its candidates: combinations, names, averages, and what does not fit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import SweepError
from evalkit.sweeps.grid import MAX_CANDIDATES, MAX_NAME, Candidate, expand
from evalkit.sweeps.loading import load
from surgery import bundled
from tests.evalkit.sweeps.conftest import SPEC

OWN = """\
name: own
models: [base, sft]
parameters: {head: 20%, layers: all}
steps:
  - {op: restore_directions, from: base, head: $head, select: {layers: $layers}}
"""
ENDS = {
    "name": "ends",
    "models": ["base", "sft"],
    "parameters": {"head": "20%", "tail": 0},
    "steps": [{"op": "restore_directions", "from": "base", "head": "$head", "tail": "$tail"}],
}


def candidates(*variants: dict[str, Any], **changes: Any) -> list[Candidate]:
    """What a sweep of these variants comes to."""
    return expand(*load({**SPEC, "averages": [], "variants": list(variants), **changes}))


def names(*variants: dict[str, Any], **changes: Any) -> list[str]:
    """The candidates' names."""
    return [candidate.name for candidate in candidates(*variants, **changes)]


def faults(*variants: dict[str, Any], **changes: Any) -> list[str]:
    """What is wrong with these variants."""
    with pytest.raises(SweepError) as caught:
        candidates(*variants, **changes)
    return [str(fault) for fault in caught.value.faults]


def test_every_combination_in_the_sweeps_order() -> None:
    """The first parameter turns slowest; values of `set` hold for all; names tell candidates apart."""
    found = candidates(
        {"recipe": "restore-layer-band", "grid": {"layers": ["first 25%", "0-9", ["0-1", 3]]}},
        {"recipe": "values-only"},
        {"recipe": ENDS, "set": {"tail": "5%"}, "grid": {"head": ["5%", 8]}},
    )
    assert [candidate.name for candidate in found] == [
        "restore-layer-band layers=first 25%",
        "restore-layer-band layers=0-9",
        'restore-layer-band layers=["0-1",3]',
        "values-only",
        "ends tail=5% head=5%",
        "ends tail=5% head=8",
    ]
    assert found[-1].parameters == {"tail": "5%", "head": 8}
    assert found[-1].recipe.parameters == {"head": 8, "tail": "5%"}
    assert {candidate.kind for candidate in found} == {"variant"}
    assert [candidate.typed for candidate in found[3:5]] == ["values-only", None]


def test_two_parameters_multiply() -> None:
    """Two values of one and three of the other are six variants."""
    found = names({"recipe": ENDS, "grid": {"head": [1, 2], "tail": [1, 2, 3]}})
    assert found[:4] == [f"ends head={head} tail={tail}" for head, tail in ((1, 1), (1, 2), (1, 3), (2, 1))]
    assert len(found) == 6


def test_values_of_any_kind_in_names() -> None:
    """Text as it is, what is no text as JSON, on one line; long names are cut and still differ."""
    long = "x" * 500
    recipe = {
        "name": "own", "models": ["sft"], "parameters": {"a": ["*"]},
        "steps": [{"op": "truncate_rank", "rank": 2, "select": {"tensors": "$a"}}],
    }  # fmt: skip
    found = names({"recipe": recipe, "grid": {"a": [["ü*", "*"], ["a\n b*"], [f"{long}a*"], [f"{long}b*"]]}})
    assert found[:2] == ['own a=["ü*","*"]', 'own a=["a\\n b*"]']
    assert len(set(found)) == 4
    assert all(len(name) == MAX_NAME for name in found[2:])
    assert all("\n" not in name for name in found)


def test_a_recipe_in_the_sweep_or_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map, a file beside the sweep's own, or a bundled name; a file goes before a bundled recipe of its name."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "own.yaml").write_text(OWN)
    (place / "values-only").write_text(OWN.replace("own", "mine"))
    (place / "sweep.yaml").write_text(
        "name: x\nmodels: [base, sft]\naverages: []\nevaluation: {task: sums}\nvariants:\n"
        "  - {recipe: own.yaml, set: {head: 5}}\n  - recipe: values-only\n"
        "  - recipe: {name: inline, models: [base, sft], steps: [{op: restore_values, from: base}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    found = expand(*load("place/sweep.yaml"))
    assert [candidate.name for candidate in found] == ["own head=5", "mine", "inline"]
    assert [candidate.typed for candidate in found] == ["place/own.yaml", "place/values-only", None]


def test_bound_models_are_part_of_the_name() -> None:
    """The same recipe on other models is another candidate; roles without a model of their name need one."""
    variants = {"recipe": "values-only"}, {"recipe": "values-only", "bind": {"sft": "rl"}}
    found = candidates(*variants, models=["base", "sft", "rl"])
    assert [candidate.name for candidate in found] == ["values-only", "values-only sft=rl"]
    assert found[1].models == {"base": "base", "sft": "rl"}
    (fault,) = faults({"recipe": "values-only"}, models=["pre", "sft"])
    assert fault.startswith("sweep variants[0]: `values-only` edits `base`, `sft`, and the sweep's models are `pre`")
    assert fault.endswith("`bind: {base: pre}`")


def test_everything_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    """Unknown recipes, parameters, roles and models, and values that a recipe refuses: each with its line, once."""
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: x\nmodels: [base, sft]\nevaluation: {task: sums}\nvariants:\n"
        "  - recipe: restore-top-20pc\n"
        "  - recipe: restore-top-20pct\n    grid: {haed: [1, 2, 3], layers: [all]}\n    set: {xyz: all}\n"
        "  - recipe: restore-top-20pct\n    grid: {head: [20%, 200%, -1], layers: [all, first 25%]}\n"
        "  - recipe: values-only\n    bind: {bsae: base, sft: stf}\n"
        "  - recipe: values-only\n    set: {output.dtype: float99}\n"
    )
    with pytest.raises(SweepError) as caught:
        expand(*load(path))
    found = [str(fault).removeprefix(f"{path}:") for fault in caught.value.faults]
    assert found[0].startswith(
        "5 variants[0].recipe: found neither a file nor a bundled recipe `restore-top-20pc`; did"
    )
    assert found[1:3] == [
        "8 variants[1].set.xyz: `restore-top-20pct` has no parameter `xyz`; its parameters: `head`, `layers`",
        "7 variants[1].grid.haed: `restore-top-20pct` has no parameter `haed`; did you mean `head`?",
    ]
    assert [text[:15] for text in found[3:5]] == ["9 variants[2]: "] * 2
    assert "200%" in found[3]
    assert "-1" in found[4]
    assert found[5:7] == [
        "12 variants[3].bind.bsae: `values-only` has no role `bsae`; did you mean `base`?",
        "12 variants[3].bind.sft: `stf` is not among the sweep's models; did you mean `sft`?",
    ]
    assert "float99" in found[7]
    assert len(found) == 8


def test_the_same_name_twice() -> None:
    """A value or a recipe that is named twice, and a variant called as a model, are told."""
    (fault,) = faults({"recipe": "restore-top-20pct", "grid": {"head": ["10%", "20%", "10%"]}})
    assert fault == "sweep variants: `restore-top-20pct head=10%` come out twice; name each value and each recipe once"
    (fault,) = faults({"recipe": "values-only"}, {"recipe": "values-only"})
    assert "`values-only` come out twice" in fault
    own = {"name": "sft", "models": ["sft"], "steps": [{"op": "truncate_rank", "rank": 2}]}
    (fault,) = faults({"recipe": own})
    assert fault == "sweep models: `sft` are names of variants, too; choose others"


def test_too_many_are_refused_before_they_are_made() -> None:
    """A grid of a million million variants is one message at once."""
    grid = {"head": list(range(1, 3001)), "tail": list(range(3000))}
    start = time.monotonic()
    found = faults({"recipe": ENDS, "grid": grid}, {"recipe": "values-only", "set": {"x": 1}})
    assert time.monotonic() - start < 10
    assert found[0] == (
        f"sweep variants[0].grid: makes more than {MAX_CANDIDATES:,} variants in all; take fewer values, or several "
        "sweeps"
    )
    assert "no parameter `x`" in found[1]
    half = {"recipe": ENDS, "grid": {"head": list(range(1, MAX_CANDIDATES // 2 + 2))}}
    (fault,) = faults(half, {**half, "set": {"tail": 1}})
    assert "sweep variants[1].grid: makes more than" in fault


def test_averages_stand_beside_every_edit_of_two_models() -> None:
    """One for each weight and each pair of models, under the names of the sweep's models."""
    found = candidates(
        {"recipe": "values-only"},
        {"recipe": "restore-top-20pct"},
        {"recipe": "values-only", "bind": {"sft": "rl"}},
        models=["base", "sft", "rl"],
        averages=[0.25, 0.5],
    )
    added = [candidate for candidate in found if candidate.kind == "baseline"]
    assert [candidate.name for candidate in added] == [
        "wise-ft alpha=0.25", "wise-ft alpha=0.5", "wise-ft alpha=0.25 sft=rl", "wise-ft alpha=0.5 sft=rl"
    ]  # fmt: skip
    assert added[2].models == {"base": "base", "sft": "rl"}
    assert added[0].recipe.steps[0].model_dump()["weights"] == ("rest", 0.25)
    assert found[-4:] == added


def test_averages_that_the_sweep_has_are_not_added_again() -> None:
    """Those that it tries itself count as averages, and add none of their own."""
    own = {"recipe": "wise-ft", "grid": {"alpha": [0.5, 0.7]}}
    found = candidates({"recipe": "values-only"}, own, averages=[0.25, 0.5])
    assert [(candidate.name, candidate.kind) for candidate in found] == [
        ("values-only", "variant"), ("wise-ft alpha=0.5", "baseline"), ("wise-ft alpha=0.7", "baseline"),
        ("wise-ft alpha=0.25", "baseline"),
    ]  # fmt: skip
    assert len(candidates(own, averages=[0.25, 0.5])) == 2


def test_no_averages_where_there_are_no_two_models() -> None:
    """A recipe of one model, or of a model with itself, has nothing to be averaged with."""
    own = {"name": "own", "models": ["sft"], "steps": [{"op": "truncate_rank", "rank": 2}]}
    assert names({"recipe": own}, averages=[0.5]) == ["own"]
    assert names({"recipe": "values-only", "bind": {"base": "sft"}}, averages=[0.5]) == ["values-only base=sft"]


def test_stacks_of_layers_are_variants_without_averages() -> None:
    """Stacking layers is an edit, with or without steps; its two models may be of different depth."""
    stack = {"name": "stack", "models": ["base", "sft"], "slices": [{"base": "0-1"}, {"sft": "0-1"}]}
    grid = {"recipe": "drop-deep-layers", "grid": {"kept": ["first 50%", "first 75%"]}}
    assert [(each.name, each.kind) for each in candidates({"recipe": stack}, grid, averages=[0.5])] == [
        ("stack", "variant"), ("drop-deep-layers kept=first 50%", "variant"),
        ("drop-deep-layers kept=first 75%", "variant"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", bundled.names("sweeps"))
def test_bundled_sweeps_come_out(name: str) -> None:
    """Each has candidates, averages among them."""
    found = expand(*load(name))
    assert len(found) >= 10
    assert any(candidate.kind == "baseline" for candidate in found)
