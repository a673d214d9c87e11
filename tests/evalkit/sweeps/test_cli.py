"""`surgery sweep` as a user meets it: results, messages, exit codes, and nothing else on stdout."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file

import evalkit.sweeps.scoring
import evalkit.sweeps.sweep
import surgery
from evalkit.errors import EngineError
from tests.adapters.peft import factors, write_adapter
from tests.commands import Run
from tests.evalkit.sums import Sums
from tests.evalkit.sweeps.conftest import SPEC, Pair, WeighedEngine, by_name, drawn

SKILL = by_name(sft=(0.5, 0.1), values_only=(0.6, 0.6))
HINT = "what is finished is kept: run the same command again to go on"


@pytest.fixture
def run(surgery_command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `surgery sweep` in this process, in a directory with `sweep.yaml`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evalkit.sweeps.scoring, "TASKS", {**evalkit.sweeps.scoring.TASKS, "sums": Sums})
    monkeypatch.setattr("evalkit.tasks.TASKS", evalkit.sweeps.scoring.TASKS)
    monkeypatch.setattr(evalkit.sweeps.scoring, "make_engine", lambda *_: WeighedEngine(SKILL))
    monkeypatch.setattr(evalkit.sweeps.sweep, "draw_pareto", drawn)
    with (tmp_path / "sweep.yaml").open("w") as file:
        YAML().dump(SPEC, file)

    return partial(surgery_command, "sweep")


def test_table_files_and_progress(run: Run, pair: Pair, tmp_path: Path) -> None:
    """A row for each model and variant, the choice, and where the winner lies, which `surgery verify` confirms."""
    code, out, err = run("sweep.yaml", *pair.values(), "--workers", 1, "--out", "kept")
    assert code == 0
    assert out.startswith("tries  sums: top 100, part test, id 24, ood 24, seeds 0, engine fake")
    assert "kept/best -> checkpoints/values-only: 5 values-only" in out
    surgery.verify(tmp_path / "kept" / "best")
    said = [line for line in err.splitlines() if line.startswith(("[", "making", "note"))]
    few, *said = said
    assert few.startswith("note: the selection half of ood has 9 problems")
    assert said == [
        "[1/6] base", "[2/6] sft", "making 4 variants", "[3/6] restore-top-20pct-rotate head=10%",
        "[4/6] restore-top-20pct-rotate head=50%", "[5/6] values-only", "[6/6] wise-ft alpha=0.5",
    ]  # fmt: skip
    page = (tmp_path / "kept" / "report.html").read_text()
    assert f"surgery apply values-only {pair['base']} {pair['sft']} OUT" in page
    assert "surgery verify kept/checkpoints/values-only" in page
    again, repeated, err = run("sweep.yaml", *pair.values(), "--out", "kept")
    assert (again, repeated) == (0, out)
    assert "note: 4 of 4 variants are known from an earlier run" in err


def test_json_is_all_there_is_on_stdout(run: Run, pair: Pair, tmp_path: Path) -> None:
    """The same as in `report.json`, without NaN; options replace what the sweep says."""
    code, out, _ = run("sweep.yaml", *pair.values(), "--json", "--n", 6, "--keep", "none", "--workers", 1)
    assert code == 0
    found = json.loads(out, parse_constant=pytest.fail)
    assert found == json.loads((tmp_path / "sweep" / "report.json").read_text())
    assert found["best"] == "values-only"
    assert found["rows"][0]["scores"]["all"]["id"]["n"] == 6
    assert [row["kept"] for row in found["rows"]] == [None] * 6


def test_dry_run_makes_nothing(run: Run, pair: Pair, tmp_path: Path) -> None:
    """The variants and what they cost, as a table or as JSON, from the headers."""
    code, out, _ = run("sweep.yaml", *pair.values(), "--dry-run")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["restore-top-20pct-rotate"] * 2 + [
        "values-only", "wise-ft"
    ]  # fmt: skip
    assert "4 variants, 1.54 MB in all; 6 checkpoints to be asked 24 examples of id and 24 examples of ood each" in out
    code, out, _ = run("sweep.yaml", *pair.values(), "--dry-run", "--json")
    assert len(json.loads(out)["variants"]) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.yaml"}


def test_dry_run_tries_the_prompts(run: Run, pair: Pair, tmp_path: Path) -> None:
    """What has no room in a model's context, or cannot be put, fails as the sweep itself would, with its message."""
    short = Path(shutil.copytree(pair["sft"], tmp_path / "short"))
    settings = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 12}))
    code, _, err = run("sweep.yaml", pair["base"], short, "--dry-run")
    assert code == 1
    assert f"`{short}`: the prompt of example" in err
    assert "is more than its context; lower `--max-tokens`" in err
    assert run("sweep.yaml", pair["base"], short, "--out", tmp_path / "out")[2].split("lower")[0] in err
    assert run("sweep.yaml", pair["base"], short, "--dry-run", "--json")[0] == 1
    (short / "tokenizer.json").unlink()
    assert "has no tokenizer" in run("sweep.yaml", pair["base"], short, "--dry-run")[2]
    lora = write_adapter(tmp_path / "lora", factors(load_file(pair["base"] / "model.safetensors")))
    assert run("sweep.yaml", pair["base"], f"{pair['base']}+{lora}", "--dry-run")[0] == 0


def test_bundled_sweeps_are_listed_and_shown(run: Run) -> None:
    """Without a model; what is shown is a sweep that can be changed and run."""
    code, out, _ = run("--list")
    assert code == 0
    assert "restore  base sft: Leading directions" in out
    code, out, _ = run("--show", "restore")
    assert code == 0
    assert YAML(typ="safe").load(out)["name"] == "restore"
    code, _, err = run("--show", "restor")
    assert (code, "did you mean `restore`?" in err) == (1, True)
    assert "found no bundled sweep `nope`; bundled sweeps: `demo`, `restore`" in run("--show", "nope")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sweep.yaml"], 2, "Missing argument 'MODEL...'"),
        (["sweep.yaml", "base", "--keep", "some"], 2, "'some' is not one of 'best', 'pareto', 'all', 'none'"),
        (["sweep.yaml", "base", "--n", "0"], 2, "0 is not in the range x>=1"),
        (["sweep.yaml", "base", "--disk", "much"], 2, "much"),
        (["sweep.yaml", "base", "--engine-option", "x"], 2, "expected NAME=VALUE"),
        (["sweep.yaml", "base"], 1, "error: models: found 1; expected 2, for `base`, `sft`, in this order"),
        (
            ["sweep.yml", "a", "b"],
            1,
            "found neither a file nor a bundled sweep `sweep.yml`; did you mean `sweep.yaml`?",
        ),
        (["sweep.yaml", "nowhere", "nothing"], 1, "error: model `base`: "),
        (["sweep.yaml", "{base}", "{sft}", "--disk", "1kB"], 1, "a variant takes"),
        (["sweep.yaml", "{base}", "{sft}", "--out", "sweep.yaml"], 1, "exists and holds no sweep; choose another"),
        (["sweep.yaml", "{base}", "{sft}", "--device", "cdua"], 1, "cdua"),
        (["sweep.yaml", "{base}", "{sft}", "--memory", "1MB"], 1, "--memory"),
    ],
)
def test_wrong_usage_and_bad_input(
    run: Run, pair: Pair, arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    """Exit 2 for how it was called, 1 for what was found; one message, which says what to do."""
    before = (tmp_path / "sweep.yaml").read_bytes()
    found, out, err = run(*(argument.format(**pair) for argument in arguments))
    assert (found, out) == (code, "")
    assert message in err
    assert "[1/" not in err  # nothing was asked
    assert (tmp_path / "sweep.yaml").read_bytes() == before


def test_nothing_could_be_made(run: Run, pair: Pair, tmp_path: Path) -> None:
    """Exit 1 after the table, where not one variant could be made; with one of them that is a note."""
    recipe = (
        "{name: big, models: [base, sft], parameters: {w: 1}, output: {dtype: float16}, "
        "steps: [{op: linear, models: [base, sft], weights: [0, $w], normalize: false}]}"
    )
    for values, expected in (("[1.0e+6]", 1), ("[1.0e+6, 0.5]", 0)):
        spec = {**SPEC, "averages": [], "variants": []}
        text = json.dumps(spec).replace('"variants": []', f'"variants": [{{recipe: {recipe}, grid: {{w: {values}}}}}]')
        (tmp_path / f"big{expected}.yaml").write_text(text)
        code, out, err = run(f"big{expected}.yaml", *pair.values(), "--out", f"big{expected}")
        assert code == expected, err
        assert "note: `big w=1000000.0` could not be made: `model." in err
        assert "x could not be made" in out


def test_an_error_on_the_way_says_how_to_go_on(run: Run, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that comes before anything has begun."""

    def broken(*_: Any) -> WeighedEngine:
        made = WeighedEngine(SKILL)
        monkeypatch.setattr(made, "load", failing)
        return made

    def failing(*_: Any) -> None:
        raise EngineError("no memory")

    monkeypatch.setattr(evalkit.sweeps.scoring, "make_engine", broken)
    code, _, err = run("sweep.yaml", *pair.values())
    assert code == 1
    assert err.splitlines()[-2:] == [HINT, "error: no memory"]
    _, _, err = run("sweep.yaml", "nowhere", "nothing")
    assert HINT not in err


@pytest.mark.parametrize("name", ["matplotlib", "jinja2", "transformers"])
def test_a_missing_library_is_told_before_the_work(
    run: Run, pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """One line with what to install, and nothing was begun."""
    real = builtins.__import__

    def without(module: str, *arguments: Any, **options: Any) -> Any:
        if module.split(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(module, *arguments, **options)

    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = run("sweep.yaml", *pair.values(), "--workers", 1)
    assert code == 1
    assert f"`{name}`" in err
    assert "pip install" in err
    assert name == "transformers" or not (tmp_path / "sweep").exists()


PROGRAM = """
import sys, time
import evalkit.sweeps.scoring, evalkit.tasks
from surgery.cli import main
from tests.evalkit.sums import Sums
from tests.evalkit.sweeps.conftest import WeighedEngine, nearness
evalkit.sweeps.scoring.TASKS = evalkit.tasks.TASKS = {**evalkit.tasks.TASKS, "sums": Sums}
def slow(directory, large):
    print("asked", file=sys.stderr, flush=True)
    time.sleep(0.05)
    return nearness(directory, large)
evalkit.sweeps.scoring.make_engine = lambda *_: WeighedEngine(slow)
main()
"""


def test_ctrl_c(run: Run, pair: Pair, tmp_path: Path) -> None:
    """Exit 130, one hint, no traceback; what was answered is kept, and the command goes on from there."""
    command = [sys.executable, "-c", PROGRAM, "sweep", "sweep.yaml", *map(str, pair.values()), "--workers", "1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while sum(line == "asked\n" for line in said) < 5 and said[-1]:
            said.append(process.stderr.readline())
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert time.monotonic() - start < 20
    assert [line for line in rest.splitlines() if line][-2:] == [HINT, "interrupted"]
    assert "Traceback" not in rest
    kept = sum(path.read_text().count("\n") for path in (tmp_path / "sweep").rglob("samples.jsonl"))
    assert kept >= 4
    code, out, _ = run("sweep.yaml", *pair.values(), "--workers", 1, "--json")
    assert code == 0
    assert json.loads(out)["best"]
