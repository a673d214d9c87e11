"""The bundled recipes and their index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from surgery import bundled
from surgery.errors import RecipeError
from surgery.recipe import load

RECIPES = Path(__file__).parent.parent / "recipes"
EXPECTED = [
    "align-and-average",
    "denoise-task-vector",
    "drop-deep-layers",
    "merge-adapter",
    "merge-dare-ties",
    "merge-iso-c",
    "merge-iso-cts",
    "merge-knots",
    "merge-linear",
    "merge-slerp",
    "merge-ties",
    "merge-tsv",
    "reset-first-quarter",
    "restore-head-and-tail",
    "restore-layer-band",
    "restore-top-20pct",
    "restore-top-20pct-rotate",
    "rl-with-sft-directions",
    "sft-with-rl-directions",
    "suppress-intruders",
    "values-only",
    "wise-ft",
]


def test_names() -> None:
    """These recipes come with the package."""
    assert bundled.names() == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_each_recipe(name: str) -> None:
    """A bundled recipe loads, bears its file's name, has a one-line summary, parameters and a comment."""
    recipe = load(name)
    assert recipe.name == name
    assert recipe.summary.endswith((".", ")."))
    assert "\n" not in recipe.summary
    assert recipe.parameters
    assert set(recipe.models) <= {"base", "sft", "rl", "first", "second"}
    assert recipe.text.startswith("#")
    assert "# Expect:" in recipe.text


def test_a_file_of_the_same_name_is_not_bundled(tmp_path: Path) -> None:
    """Name and text are those of the recipe that comes with the package, whatever file it was read from."""
    text = bundled.read("wise-ft")
    (tmp_path / "own.yaml").write_text(f"{text}# changed\n")
    for source, expected in (("wise-ft", True), (tmp_path / "own.yaml", False), (RECIPES / "wise-ft.yaml", True)):
        recipe = load(source)
        assert bundled.is_bundled(recipe.name, recipe.text) == expected
    assert not bundled.is_bundled("other", text)


def test_an_unknown_name() -> None:
    """A name that is not bundled gets the nearest that is."""
    with pytest.raises(RecipeError, match="found no bundled recipe `wise_ft`; did you mean `wise-ft`"):
        bundled.read("wise_ft")


@pytest.mark.parametrize("name", ["../pyproject", "/etc/passwd", "", "README"])
def test_a_name_is_no_path(name: str) -> None:
    """Only the listed names are read."""
    with pytest.raises(RecipeError, match="found no bundled recipe"):
        bundled.read(name)


def test_the_index() -> None:
    """The README lists every recipe with its roles and parameters, and no other."""
    rows = re.findall(
        r"^\| \[([\w-]+)\]\(([\w.-]+)\) \| ([\w, ]+) \|.*?\| ([`\w, ]+) \|.*\|$",
        (RECIPES / "README.md").read_text("utf-8"),
        re.M,
    )
    assert sorted(name for name, *_ in rows) == EXPECTED
    for name, file, models, parameters in rows:
        recipe = load(name)
        assert file == f"{name}.yaml"
        assert tuple(models.split(", ")) == recipe.models
        assert re.findall(r"`(\w+)`", parameters) == list(recipe.parameters)


def test_settings_that_the_comments_name() -> None:
    """What the comments and the index tell users to set can be set."""
    load("restore-head-and-tail", {"orthogonalize": "rotate"})
    load("restore-top-20pct-rotate", {"head": "50%"})
    for band in ("0-6", "7-13", "last 4", "[0-4, 20-27]"):
        load("restore-layer-band", {"layers": band})
    for kept in ("0-19", "[0-19, 24-27]"):
        load("drop-deep-layers", {"kept": kept})
    for alpha in ("0.25", "0.75"):
        load("wise-ft", {"alpha": alpha})
    load("denoise-task-vector", {"rank": "10%"})
    load("merge-linear", {"t": "[0.2, 0.8]"})
    load("merge-slerp", {"t": "[0, 0.5, 1]"})
    for name in ("merge-ties", "merge-dare-ties"):
        load(name, {"weights": "[1, 0.5]", "density": "0.1", "lambda": "0.8"})
    load("merge-dare-ties", {"seed": "3"})
