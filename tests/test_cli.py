"""The command line as a user meets it: results, messages, exit codes, and nothing else on stdout."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from click.testing import CliRunner

from surgery.cli import cli
from tests.commands import Run
from tests.pairs import files, llama, near, read, write


@pytest.fixture
def run(surgery_command: Run) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""
    return surgery_command


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and its fine-tuned model."""
    base = llama(layers=4)
    return write(tmp_path / "base", base, 2), write(tmp_path / "sft", near(base), 2)


def test_apply_then_verify(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The main job on a bundled recipe with a parameter; the summary counts what was done."""
    code, out, _ = run("apply", "restore-top-20pct", *pair, tmp_path / "out", "--set", "head=40%")
    assert (code, out) == (0, f"{tmp_path / 'out'}: 39 tensors, 9.24 kB: 28 computed, 11 copied\n")
    assert (
        json.loads((tmp_path / "out" / "surgery.json").read_text())["recipe"]["resolved"]["steps"][0]["head"] == "40%"
    )
    code, out, _ = run("verify", tmp_path / "out")
    assert code == 0
    assert "39 tensors and 4 files are as the manifest says" in out
    (tmp_path / "out" / "config.json").write_text("{}")
    code, out, err = run("verify", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.startswith("error: `config.json`: was changed")


def test_plan_tells_what_apply_would_do(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Counts, bytes, memory and remarks, for people and for machines; nothing is written."""
    code, out, _ = run("plan", "restore-top-20pct", *pair)
    assert code == 0
    assert "28  steps[0] restore_directions of sft, base" in out
    assert "11  copy of sft" in out
    code, out, _ = run("plan", "restore-top-20pct", *pair, "--json")
    made = json.loads(out)
    assert made["actions"] == {"copy": 11, "cast": 0, "gather": 0, "adapt": 0, "compute": 28}
    assert sum(file for file in made["files"].values()) == made["bytes_written"]
    assert len(made["tensors"]) == 39
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "sft"]


def test_json_is_all_that_stdout_gets(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Every command's `--json` parses, and failures print none."""
    _, out, _ = run("apply", "wise-ft", *pair, tmp_path / "out", "--json")
    assert json.loads(out)["out"] == str(tmp_path / "out")
    assert json.loads(run("verify", tmp_path / "out", "--json")[1])["tensors"] == 39
    assert json.loads(run("inspect", pair[0], "--json")[1])["stacks"] == {"model.layers": 4}
    assert "wise-ft" in {row["name"] for row in json.loads(run("recipes", "--json")[1])}
    assert json.loads(run("recipes", "wise-ft", "--json")[1])["name"] == "wise-ft"
    code, out, _ = run("apply", "wise-ft", *pair, tmp_path / "out", "--json")
    assert (code, out) == (1, "")


def test_inspect_counts_layers_together(run: Run, pair: tuple[Path, Path]) -> None:
    """One row for each kind of tensor, with group, shape, dtype, count."""
    code, out, _ = run("inspect", pair[0])
    assert code == 0
    assert "text decoder: model.layers, 4 layers" in out
    row = next(line for line in out.splitlines() if "up_proj" in line)
    assert row.split() == ["model.layers.{0-3}.mlp.up_proj.weight", "mlp", "16", "x", "8", "BF16", "4", "1.02", "kB"]


def test_every_bundled_recipe_is_listed_and_printed_as_it_is(run: Run) -> None:
    """`recipes NAME` prints the file, comments included, which `apply` takes."""
    code, out, _ = run("recipes")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert len(names) >= 9
    for name in names:
        code, text, _ = run("recipes", name)
        assert code == 0
        assert f"name: {name}\n" in text
        assert "#" in text


def test_schema_is_a_valid_json_schema(run: Run) -> None:
    """By the JSON Schema project's own check."""
    code, out, _ = run("schema")
    assert code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(out))


def test_a_recipe_with_many_mistakes_is_told_all_at_once(run: Run, tmp_path: Path) -> None:
    """With file, line and path, before any checkpoint is opened."""
    (tmp_path / "bad.yaml").write_text(
        "name: bad\nmodels: [base, sft]\nsteps:\n  - op: restore_directions\n    form: base\n    head: 120%\n"
        "  - op: restore_direction\n    from: base\n"
    )
    code, out, err = run("apply", tmp_path / "bad.yaml", "nowhere", "nowhere", tmp_path / "out")
    assert (code, out) == (1, "")
    for expected in ("bad.yaml:5 steps[0]", "did you mean `from`", "bad.yaml:6 steps[0].head", "bad.yaml:7 steps[1]"):
        assert expected in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["apply"], 2, "Missing argument 'RECIPE'"),
        (["apply", "wise-ft", "a"], 2, "Missing argument"),
        (["aply"], 2, "No such command 'aply'"),
        (["plan", "wise-ft", "{base}", "{sft}", "--set", "alpha"], 2, "expected NAME=VALUE"),
        (["plan", "wise-ft", "{base}", "{sft}", "--set", "alfa=0.2"], 1, "did you mean `alpha`?"),
        (["plan", "wise-ft", "{base}", "{sft}", "--memory", "12"], 2, "expected a size with its unit"),
        (["plan", "wise-ft", "{base}", "{sft}", "--memory", "100MB"], 1, "raise `--memory` to at least"),
        (["plan", "wise-ft", "{base}"], 1, "found one model; expected 2, for the roles `base`, `sft`"),
        (["plan", "wise-ft", "{base}"], 1, "`sft`, in this order; `surgery recipes wise-ft` prints the recipe"),
        (["plan", "wise-fit", "{base}", "{sft}"], 1, "wise-ft"),
        (["plan", "wise-ft", "{base}", "{base}x"], 1, "{base}x"),
        (["recipes", "nonsense"], 1, "nonsense"),
        (["inspect", "{base}/config.json"], 1, "config.json"),
        (["verify", "{base}"], 1, "found no `surgery.json`"),
        (["verify", "{base}x"], 1, "`{base}x`: it does not exist; expected a directory that `surgery apply` made"),
        (["plan", "wise-ft", "{base}", "{sft}", "--set", "alpha="], 1, "found nothing for `sft`; expected a finite"),
        (["apply", "wise-ft", "{base}", "{sft}", "{base}"], 1, "is, contains or lies inside the input `base`"),
        (["apply", "wise-ft", "{base}", "{sft}", "{base}-o", "--device", "cuda:99"], 1, "device `cuda:99`"),
        (["apply", "wise-ft", "{base}", "{sft}", "{base}-o", "--workers", "0"], 2, "0 is not in the range"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_message_and_the_right_code(
    run: Run, pair: tuple[Path, Path], arguments: list[str], code: int, message: str
) -> None:
    """2 for wrong usage, 1 for everything else that is foreseeable; nothing on stdout."""
    names = {"base": str(pair[0]), "sft": str(pair[1])}
    found, out, err = run(*(argument.format(**names) for argument in arguments))
    assert (found, out) == (code, "")
    assert message.format(**names) in err


def test_progress_goes_to_stderr(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain lines where stderr is no terminal."""
    monkeypatch.setattr("surgery.console.PLAIN_SECONDS", 0)
    result = CliRunner().invoke(cli, ["apply", "wise-ft", *map(str, pair), str(tmp_path / "out")])
    assert result.exit_code == 0
    assert "apply: 100 %, 39 of 39 tensors" in result.stderr
    assert "apply:" not in result.stdout


def test_tests_are_run_with_ctrl_c_in_force() -> None:
    """Also where whoever started them ignores it: their processes would, too."""
    script = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "True\n"


def test_ctrl_c_is_one_message_and_the_work_is_kept(tmp_path: Path) -> None:
    """SIGINT in the middle of a run: exit 130, no traceback, no OUT; the same command then ends the work."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(40)]
    base = {name: torch.randn((400, 400), generator=generator) for name in names}
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", near(base))]
    out = tmp_path / "out"
    recipe = {"name": "r", "models": ["base", "sft"], "steps": [
        {"op": "restore_directions", "from": "base", "head": "30%", "select": {"tensors": ["mlp"]}}]}  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "surgery.cli", "apply", str(tmp_path / "r.yaml"), *map(str, models), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "out.partial.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_text().count('"tensor"') > 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "what is finished is kept: run the same command again" in err
    assert "Traceback" not in err
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "were there from an interrupted run" in done.stdout
    assert read(out).keys() == base.keys()


def test_a_pipe_that_closes_early_is_no_error_message() -> None:
    """`surgery schema | head` ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "surgery.cli", "schema"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_commands_of_other_packages_are_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in the group `surgery.commands` is listed and runs; it is imported only then."""
    import click

    class Entry:
        name = "score"

        def load(self) -> click.Command:
            return click.Command("score", callback=lambda: click.echo("scored"), help="Score things.")

    class Entries(list[Any]):
        names = frozenset({"score"})

    def find(group: str, name: str | None = None) -> Entries:
        assert group == "surgery.commands"
        return Entries([Entry()] if name in (None, "score") else [])

    monkeypatch.setattr("surgery.cli.entry_points", find)
    assert "score" in CliRunner().invoke(cli, ["--help"]).output
    assert CliRunner().invoke(cli, ["score"]).output == "scored\n"


def test_the_output_of_apply_can_be_an_input(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Chains of recipes work like any checkpoint; an output equals its own average."""
    run("apply", "restore-top-20pct", *pair, tmp_path / "a")
    assert run("apply", "wise-ft", tmp_path / "a", tmp_path / "a", tmp_path / "b")[0] == 0
    weights = [{n: c for n, c in files(tmp_path / o).items() if n.endswith(".safetensors")} for o in "ab"]
    assert weights[0] == weights[1]


def test_markup_in_names_is_shown_as_it_is(run: Run, tmp_path: Path) -> None:
    """Brackets and colons in a summary, a path or a tensor's name neither break nor change what is printed."""
    base = llama(layers=1)
    base["model.[/bold].weight"] = torch.ones(2)
    base["model.\x1b[31m.weight"] = torch.ones(3)
    models = [write(tmp_path / "b[red]:cat:", base), write(tmp_path / "sft", near(base))]
    (tmp_path / "r.yaml").write_text(
        "name: r\nsummary: 'put [/foo] back'\nmodels: [base, sft]\nsteps: [{op: linear, models: [base, sft]}]\n"
    )
    code, out, _ = run("plan", tmp_path / "r.yaml", *models)
    assert code == 0
    assert "put [/foo] back" in out
    assert "b[red]:cat:" in out
    code, out, _ = run("inspect", models[0])
    assert code == 0
    assert "model.[/bold].weight" in out
    assert "\x1b" not in out


def test_a_setting_given_twice_is_wrong_usage(run: Run, pair: tuple[Path, Path]) -> None:
    """Rather than the last one taken in silence."""
    code, _, err = run("plan", "wise-ft", *pair, "--set", "alpha=0.1", "--set", "alpha=0.2")
    assert code == 2
    assert "found `alpha` twice" in err


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_a_stdout_that_takes_nothing_is_no_traceback(redirection: str) -> None:
    """Closed, or on a full disk."""
    command = f"{shlex.quote(sys.executable)} -m surgery.cli schema {redirection}"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == ("full" in redirection)
    assert ("cannot write the result: No space left" in done.stderr) == ("full" in redirection)


def test_experts_are_counted_together(run: Run, tmp_path: Path) -> None:
    """Layers and experts of one kind make one row."""
    tensors = {
        f"model.layers.{i}.mlp.experts.{j}.w1.weight": torch.ones((4, 4)) for i in range(2) for j in (0, 1, 2, 5)
    }
    _, out, _ = run("inspect", write(tmp_path / "m", {**tensors, "model.embed_tokens.weight": torch.ones((9, 4))}))
    row = next(line for line in out.splitlines() if line.strip().startswith("model.layers"))
    assert row.split()[0] == "model.layers.{0-1}.mlp.experts.{0-2,5}.w1.weight"
