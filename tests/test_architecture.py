"""Which file may import which: the arrows run one way, and heavy packages are loaded only where they are needed."""

from __future__ import annotations

import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests.conftest import MakeCheckpoint

ROOT = Path(__file__).parent.parent
ORDER = ["surgery", "evalkit", "trainers"]  # each may import those to its left
PACKAGES = [name for name in ORDER if (ROOT / name).is_dir()]
TENSOR_FILES = {
    *("surgery.compute", "surgery.crew", "surgery.decompositions", "surgery.dtypes", "surgery.executor"),
    "surgery.operand",
    *("surgery.extraction.factors", "surgery.extraction.run"),
    *(f"surgery.analysis.{name}" for name in ("change", "gauge", "measure", "overlap", "run", "spectrum")),
}  # and everything below surgery.spectral and surgery.ops, where operations import their functions when they run
HEAVY = {"numpy", "pydantic", "ray", "rich", "ruamel", "safetensors", "scipy", "torch", "transformers", "trl", "vllm"}
HEAVY |= {"jinja2", "lm_eval", "openai", "regex", "accelerate", "datasets", "matplotlib", "pandas", "pyarrow"}
FEW_FILES = {  # packages, and the modules that alone import them
    "vllm": {"evalkit.engines.vllm"},
    "openai": {"evalkit.engines.openai"},
    "jinja2": {"evalkit.prompt_template", "surgery.page"},
    "matplotlib": {"surgery.plotting"},
}
TRL_FILES = {"trainers.sft", "trainers.grpo"}  # the trainers that wrap it


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """All imports that run, those inside functions too; not those for type checkers alone."""
    return grimp.build_graph(
        *PACKAGES, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )


def importers(graph: grimp.ImportGraph, package: str) -> set[str]:
    """The modules that import `package` or something in it by a statement of their own."""
    modules = {module for module in graph.modules if module.split(".")[0] == package}
    return {importer for module in modules for importer in graph.find_modules_that_directly_import(module)} - modules


def loaded(code: str, *arguments: object) -> set[str]:
    """The top-level packages in `sys.modules` after an interpreter of its own has run `code`."""
    report = "import os, sys, json, atexit; atexit.register(lambda: print('\\n' + json.dumps([*sys.modules]))); "
    report += "os._exit = sys.exit; "  # the command line leaves without ceremony
    command = [sys.executable, "-c", report + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_packages_import_downwards(graph: grimp.ImportGraph) -> None:
    """trainers -> evalkit -> surgery, and nothing back."""
    for i, package in enumerate(ORDER):
        assert {module.split(".")[0] for module in importers(graph, package)}.isdisjoint(ORDER[:i])


def test_no_cycles(graph: grimp.ImportGraph) -> None:
    """There is an order in which every module comes after all that it imports: no cycles, not even in functions."""
    ours = {module for module in graph.modules if module.split(".")[0] in PACKAGES}
    imports = {module: graph.find_modules_directly_imported_by(module) & ours for module in ours}
    assert len(list(TopologicalSorter(imports).static_order())) == len(ours) > 40


def test_torch_only_where_tensors_are_touched(graph: grimp.ImportGraph) -> None:
    """In `surgery`, torch is imported by the functions of operations and by the files that hold tensors."""
    found = {module for module in importers(graph, "torch") if module.startswith("surgery.")}
    assert {module for module in found if not module.startswith(("surgery.spectral.", "surgery.ops."))} == TENSOR_FILES


def test_only_the_command_line_talks_to_people(graph: grimp.ImportGraph) -> None:
    """click and rich are imported by each package's command line alone: its options, tables and progress."""
    found = importers(graph, "click") | importers(graph, "rich")
    assert {module.rsplit(".", 1)[1] for module in found} == {"cli", "console", "options", "progress_bar"}


@pytest.mark.parametrize(("package", "modules"), FEW_FILES.items())
def test_each_library_has_its_files(graph: grimp.ImportGraph, package: str, modules: set[str]) -> None:
    """What an engine, or another thing with a file of its own, is built on is imported there and nowhere else."""
    assert importers(graph, package) == modules


def test_trl_is_wrapped(graph: grimp.ImportGraph) -> None:
    """TRL is imported by the trainers that wrap its own, and by nothing else."""
    assert importers(graph, "trl") == TRL_FILES


def test_evalkit_touches_tensors_in_engines_only(graph: grimp.ImportGraph) -> None:
    """In `evalkit`, torch and transformers are for the engines and for rendering prompts."""
    found = {module for name in ("torch", "transformers") for module in importers(graph, name)}
    found = {module for module in found if module.startswith("evalkit.")}
    assert {module for module in found if not module.startswith("evalkit.engines.")} == {"evalkit.rendering"}


@pytest.mark.parametrize(
    "code",
    [
        "import surgery",
        "import sys; sys.argv[1:] = ['--help']; from surgery.cli import main; main()",
        "import sys; sys.argv[1:] = ['train', '--help']; from surgery.cli import main; main()",
    ],
    ids=["import", "help", "train help"],
)
def test_starts_light(code: str) -> None:
    """`import surgery`, `surgery --help` and `surgery train --help` load none of the heavy packages."""
    assert loaded(code).isdisjoint(HEAVY)


def test_plan_loads_no_torch(make_checkpoint: MakeCheckpoint) -> None:
    """`surgery plan` of a spectral recipe works from headers: torch, numpy and their kind are not loaded."""
    base, sft = make_checkpoint("base"), make_checkpoint("sft", seed=1)
    packages = loaded("from surgery.cli import main; main()", "plan", "restore-top-20pct-rotate", base, sft)
    assert packages.isdisjoint(HEAVY - {"pydantic", "rich", "ruamel"})
    assert {"pydantic", "rich", "ruamel"} <= packages
