"""README shows what the commands really print, and its recipe and its Python run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import surgery
from tests.demo import make_pair

README = (Path(__file__).parent.parent / "README.md").read_text()
CLI = [sys.executable, "-m", "surgery.cli"]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo's `base` and `sft`."""
    directory = tmp_path_factory.mktemp("readme")
    make_pair(directory)
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
        for name in ("apply", "plan", "verify", "inspect", "recipes", "schema")
    }
    for verb in set(re.findall(r"surgery (\w+)", README)) - {"is"}:
        assert verb in helps, verb
    for option in set(re.findall(r"(?<![\w-])--[a-z]+", README)):
        assert any(option in text for text in helps.values()), option


def test_the_recipe_that_is_shown_runs(place: Path) -> None:
    """With its selectors, parameters and two steps."""
    (recipe,) = blocks("yaml")
    (place / "shown.yaml").write_text(recipe)
    made = surgery.plan(place / "shown.yaml", [place / "base", place / "sft"], settings={"head": "40%"})
    assert {tensor.steps for tensor in made.tensors} == {(), (0,), (1,)}


def test_the_python_that_is_shown_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, in the directory of the demo."""
    (code,) = blocks("python")
    monkeypatch.chdir(place)
    exec(compile(code, "README.md", "exec"), {})
    assert surgery.verify("out-python").tensors == 38


def test_every_link_leads_somewhere() -> None:
    """Files that README links are in the repository."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (Path(__file__).parent.parent / target).exists(), target
