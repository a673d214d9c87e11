"""README shows what the commands really print, and its recipe and its Python run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import evalkit
import evalkit.scorer
import surgery
import trainers
from evalkit.demo.run import lay_out
from evalkit.engines.base import Prompt
from evalkit.sweeps.grid import expand
from evalkit.sweeps.loading import load
from surgery.yaml_source import read_yaml
from tests.evalkit.fake_engine import FakeEngine, text
from tests.pairs import read
from tests.smollm2 import Pair
from tests.tiny_models import save_tiny

README = (Path(__file__).parent.parent / "README.md").read_text()
LAUNCHERS = {"--module", "--nproc"}  # options of accelerate's and torch's own commands
VERBS = [
    "apply",
    "convert",
    "demo",
    "diff",
    "eval",
    "extract-lora",
    "inspect",
    "plan",
    "recipes",
    "reproduce",
    "schema",
    "sweep",
    "train",
    "verify",
]
CLI = [sys.executable, "-m", "surgery.cli"]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo's models."""
    directory = tmp_path_factory.mktemp("readme") / "demo"
    lay_out(directory)
    return directory


def test_commands_print_what_is_shown(place: Path) -> None:
    """Each command of the console block, in order; stdout and stderr as a terminal shows them."""
    (console,) = blocks("console")
    shown = re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]
    assert len(shown) > 5
    really = []
    for entry in shown:
        command = shlex.split(entry.splitlines()[0])
        assert command[0] == "surgery"
        done = subprocess.run(
            [*CLI, *command[1:]], cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        really.append("\n".join([entry.splitlines()[0], *lines]))
    assert [entry.rstrip() for entry in shown] == really


def test_every_command_and_option_that_is_named_exists() -> None:
    """`surgery VERB` and `--option` in the text are those of the program."""
    helps = {
        name: subprocess.run([*CLI, name, "--help"], text=True, capture_output=True, check=True).stdout
        for name in VERBS
    }
    for trainer in ("sft", "data"):
        command = [*CLI, "train", trainer, "--help"]
        helps["train"] += subprocess.run(command, text=True, capture_output=True, check=True).stdout
    for verb in set(re.findall(r"surgery ([\w-]+)", README)) - {"is"}:
        assert verb in helps, verb
    for option in set(re.findall(r"(?<![\w-])--[a-z]+", README)) - LAUNCHERS:
        assert any(option in text for text in helps.values()), option


def test_the_recipe_that_is_shown_runs(place: Path) -> None:
    """With its selectors, parameters and two steps."""
    recipe, *_ = blocks("yaml")
    (place / "shown.yaml").write_text(recipe)
    made = surgery.plan(place / "shown.yaml", [place / "base", place / "sft"], settings={"head": "40%"})
    assert {tensor.steps for tensor in made.tensors} == {(), (0,), (1,)}


def test_the_python_that_is_shown_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, in the directory of the demo."""
    _, _, code, *_ = blocks("python")
    monkeypatch.chdir(place)
    exec(compile(code, "README.md", "exec"), {})
    assert surgery.verify("out-python").tensors == 75


def test_the_merge_that_is_shown_runs(place: Path) -> None:
    """With three models, and the bundled recipe with two."""
    _, recipe, *_ = blocks("yaml")
    (place / "merge.yaml").write_text(recipe)
    models = [place / name for name in ("base", "sft", "rl", "inter-sft")]
    made = surgery.plan(place / "merge.yaml", models)
    assert {tensor.steps for tensor in made.tensors} == {(0,)}
    (line,) = re.findall(
        r"^    surgery apply merge-ties BASE CODE MATH merged --set density=([\d.]+)", README, re.MULTILINE
    )
    surgery.plan("merge-ties", models[:3], settings={"density": line})


def test_the_operation_that_is_shown_works(place: Path, tmp_path: Path) -> None:
    """A file with the imports that are named, its import, and its place in the table: then a recipe may name it."""
    code, *_ = blocks("python")
    shutil.copytree(Path(surgery.__file__).parent, tmp_path / "surgery", ignore=shutil.ignore_patterns("__pycache__"))
    ops = tmp_path / "surgery" / "ops"
    imports, _ = (ops / "passthrough.py").read_text().split("class ", 1)
    (ops / "median.py").write_text(imports + code)
    table = (ops / "__init__.py").read_text()
    table = table.replace("_TABLE: ", "from surgery.ops.median import Median\n\n_TABLE: ", 1)
    (ops / "__init__.py").write_text(table.replace("    Linear,\n", "    Linear,\n    Median,\n", 1))
    step = {"op": "median", "models": ["base", "sft", "rl"]}
    recipe = tmp_path / "median.yaml"
    recipe.write_text(json.dumps({"name": "median", "models": step["models"], "steps": [step]}))
    done = subprocess.run(
        [*CLI, "apply", recipe, "base", "sft", "rl", tmp_path / "out"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    base, sft, rl, found = (read(path) for path in (place / "base", place / "sft", place / "rl", tmp_path / "out"))
    for name, median in found.items():
        assert torch.equal(median, torch.stack([base[name], sft[name], rl[name]]).sort(dim=0).values[1]), name


def test_the_task_that_is_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new task, and the evaluations, as they stand; the models' answers come from a function."""

    def answer(model: str, prompt: Prompt) -> str:
        question = re.match(r"What is ([0-9]+) \+ ([0-9]+)", text(prompt))
        return str(int(question[1]) + int(question[2])) if question and model == "out" else "no"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evalkit.scorer, "make_engine", lambda *_: FakeEngine(answer))
    for seed, name in enumerate(("base", "out")):
        save_tiny(tmp_path / name, seed=seed)
    _, task, _, use, _ = blocks("python")
    namespace: dict[str, Any] = {}
    exec(compile(task, "README.md", "exec"), namespace)
    exec(compile(use, "README.md", "exec"), namespace)
    assert namespace["report"].models[1].scores["ood"].accuracy.value == 0
    report = evalkit.evaluate(namespace["Sums"](), ["base", "out"])
    assert [row.scores["ood"].accuracy.value for row in report.models] == [0, 1]


def test_the_comparison_looks_as_shown(place: Path) -> None:
    """What `surgery diff` prints of the demo's models, with other figures, and other matrices in the table."""
    shown, *_ = blocks("text")
    command = [*CLI, "diff", "base", "sft"]
    done = subprocess.run(command, cwd=place, text=True, capture_output=True, check=True)
    assert without_names(done.stdout) == without_names(shown)


def without_names(table: str) -> list[str]:
    """The table without figures, shades of cells, and names and shapes of matrices."""
    text = re.sub("[░▒▓█]", "", table)
    return without_figures(re.sub(r"^model\.layers\.\S+ +\d+ x \d+", "a matrix", text, flags=re.MULTILINE))


def test_the_comparison_in_python_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, in the directory of the demo."""
    *_, code = blocks("python")
    monkeypatch.chdir(place)
    namespace: dict[str, Any] = {"surgery": surgery}
    exec(compile(code, "README.md", "exec"), namespace)
    assert len(namespace["table"]) == 58


@pytest.mark.real
def test_the_scores_look_as_shown(smollm2: Pair, tmp_path: Path) -> None:
    """The table of `surgery eval`, with other figures."""
    _, shown, _ = blocks("text")
    (tmp_path / "base").symlink_to(smollm2.base)
    (tmp_path / "tuned").symlink_to(smollm2.tuned)
    few = ["--n", "3", "--attempts", "2", "--max-tokens", "4", "--loss", "--engine", "transformers"]
    done = subprocess.run(
        [*CLI, "eval", "general_points", "base", "tuned", *few],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
    )
    assert without_figures(done.stdout) == without_figures(shown)


def test_the_run_that_is_shown_looks_so(tmp_path: Path) -> None:
    """The first training command and what it prints, with other figures."""
    _, _, shown = blocks("text")
    command = next(line.split("#")[0] for line in README.splitlines() if line.startswith("    surgery train sft"))
    save_tiny(tmp_path / "base")
    done = subprocess.run([*CLI, *shlex.split(command)[1:]], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert without_figures(done.stdout) == without_figures(shown)
    assert done.stdout.splitlines()[0] == shown.splitlines()[0]


def test_the_configuration_that_is_shown_is_one() -> None:
    """Every key is known, and every value right."""
    *_, config = blocks("yaml")
    loaded = trainers.load_config("sft", read_yaml(config, "README.md").data)
    assert loaded.optimizer.warmup.of(800) == 24


def without_figures(table: str) -> list[str]:
    """Its lines without the first, which tells the settings; every number is 0."""
    lines = (re.sub(r"[-+<]?[0-9][0-9.,]*", "0", line.replace("*", "")) for line in table.splitlines()[1:])
    return [" ".join(line.replace("[ ", "[").split()) for line in lines if line.strip()]


def test_every_link_leads_somewhere() -> None:
    """Files that README links are in the repository."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (Path(__file__).parent.parent / target).exists(), target


def test_the_sweep_that_is_shown_is_one() -> None:
    """Every key is known, and every combination a recipe; the averages come to it."""
    _, _, sweep, _ = blocks("yaml")
    loaded, source = load(read_yaml(sweep, "README.md").data)
    names = [candidate.name for candidate in expand(loaded, source)]
    assert len(names) == 8 + 1 + 3
    assert "restore-top-20pct-rotate head=10% layers=first 25%" in names
