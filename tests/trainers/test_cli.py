"""`surgery train` as a user types it: output, exit codes, and one message for whatever is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from surgery import bundled
from surgery.cli import cli
from surgery.errors import SurgeryError
from tests.trainers.conftest import Materials, rows
from trainers import api
from trainers.cli import TERMINATED
from trainers.loading import FOLDER, LAUNCHER

SURGERY = [sys.executable, "-m", "surgery"]


def run(*words: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli, ["train", *map(str, words)])


@pytest.fixture
def config(materials: Materials, tmp_path: Path) -> Path:
    """A configuration file without `model` and `out`."""
    keys = materials.config(Path("-"))
    path = tmp_path / "sft.yaml"
    path.write_text(json.dumps({name: value for name, value in keys.items() if name not in ("model", "out")}))
    return path


def test_sft(config: Path, materials: Materials, tmp_path: Path) -> None:
    """A table of the checkpoints and what to type next; with `--json` a report and nothing else."""
    out = tmp_path / "out"
    words = ["sft", config, "--model", materials.model, "--out", out, "--set", "steps=2"]
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "inter-sft, final" in done.stdout
    assert f"surgery apply restore-top-20pct {materials.model} {out}/final" in done.stdout
    again = run(*words, "--resume", "--json")
    assert json.loads(again.stdout) == json.loads((out / "report.json").read_bytes())
    assert again.stderr == ""
    asked = run(*words)
    assert isinstance(asked.exception, SurgeryError)
    assert "begin anew with `--overwrite`" in str(asked.exception)
    assert run(*words, "--overwrite", "--json").exit_code == 0


def pickled(model: Path) -> None:
    """Weights that can run code."""
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def without_tokenizer(model: Path) -> None:
    """No tokenizer."""
    for path in model.glob("tokenizer*"):
        path.unlink()


def quantised(model: Path) -> None:
    """A config that says so."""
    found = json.loads((model / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps({**found, "quantization_config": {"quant_method": "gptq"}}))


def too_few_tokens(model: Path) -> None:
    """A tokenizer that knows more than the model."""
    text = (model / "tokenizer.json").read_text()
    found = json.loads(text)
    found["model"]["vocab"]["="] = 104
    (model / "tokenizer.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "does not exist; expected a directory"),
        (without_tokenizer, "has no tokenizer: no `tokenizer.json`"),
        (quantised, "is quantised: it has a `quantization_config`; give the checkpoint in bfloat16 or float32"),
        (pickled, "holds pickled weights (`pytorch_model.bin`)"),
        (too_few_tokens, "its tokenizer gives the token 104, but the model has 104 tokens"),
        (lambda model: (model / "config.json").unlink(), "has no `config.json`"),
    ],
)
def test_models_that_cannot_be_trained(
    change: Callable[[Path], object], message: str, config: Path, materials: Materials, tmp_path: Path
) -> None:
    """What is wrong with the checkpoint, and what to do."""
    model = tmp_path / "model"
    shutil.copytree(materials.model, model)
    change(model)
    done = run("sft", config, "--model", model, "--out", tmp_path / "out")
    assert isinstance(done.exception, SurgeryError), done.output
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.file": "none.jsonl"}, "none.jsonl: cannot be read: No such file or directory"),
        ({"max_length": "5"}, "18 of 18 sequences are longer than `max_length` 5"),
        ({"chat_template": "none.jinja"}, "chat_template: cannot read `none.jinja`"),
        ({"report_to": "[wandb]"}, "`report_to` names `wandb`, which is not installed; pip install wandb"),
        ({"micro_batch_size": "3"}, "batch_size: found 4 with `micro_batch_size` 3 on 1 device"),
        ({"epochs": "x"}, "--set epochs: found the text `x`; expected a whole number"),
    ],
)
def test_faults(settings: dict[str, str], message: str, config: Path, materials: Materials, tmp_path: Path) -> None:
    """Faults of configuration and data."""
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = run("sft", config, "--model", materials.model, "--out", tmp_path / "out", *words)
    assert isinstance(done.exception, SurgeryError), done.output
    assert message in str(done.exception)


@pytest.mark.parametrize("inside", ["", "runs/out"])
def test_out_in_the_model(config: Path, materials: Materials, inside: str) -> None:
    """A run does not write into the checkpoint it begins with, nor below it."""
    before = sorted(materials.model.rglob("*"))
    done = run("sft", config, "--model", materials.model, "--out", materials.model / inside)
    assert "lies in the checkpoint" in str(done.exception)
    assert sorted(materials.model.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ["sft"],
        ["sft", "c", "--resume", "--overwrite"],
        ["sft", "c", "--set", "epochs"],
        ["sgd", "c"],
        ["data", "sft", "c"],
        ["data", "sgd", "c", "--out", "d"],
    ],
)
def test_usage(words: list[str]) -> None:
    """What the command line does not know is a usage error."""
    assert run(*words).exit_code == 2


def test_data(config: Path, tmp_path: Path) -> None:
    """The files are written and told, neither model nor directory being asked for; they are those of the run."""
    done = run("data", "sft", config, "--out", tmp_path / "data", "--set", "data.n=7")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'data' / name}.jsonl: {n} records" for name, n in (("train", 7), ("id", 5), ("ood", 5))
    ]
    assert len((tmp_path / "data" / "train.jsonl").read_text().splitlines()) == 7
    assert "exist already" in str(run("data", "sft", config, "--out", tmp_path / "data").exception)
    as_json = run("data", "sft", config, "--out", tmp_path / "more", "--json")
    assert json.loads(as_json.stdout) == {
        "out": str(tmp_path / "more"), "records": {"train": 18, "id": 5, "ood": 5},
    }  # fmt: skip


def test_configs() -> None:
    """The bundled configurations by name, and one as it stands in its file."""
    launchers = ["accelerate/deepspeed-zero3", "accelerate/fsdp"]
    assert run("configs").stdout.split() == [*bundled.names(FOLDER), *launchers]
    assert run("configs", launchers[1]).stdout == bundled.read("fsdp", LAUNCHER)
    assert run("configs", "sft-small").stdout == bundled.read("sft-small", FOLDER)
    assert "did you mean `sft-small`?" in str(run("configs", "sft-smal").exception)


def test_init(tmp_path: Path) -> None:
    """A bundled configuration makes a checkpoint of random weights, and tells its size."""
    done = run("init", "mini-init", "--out", tmp_path / "a", "--set", "architecture.num_hidden_layers=1")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'a'}: 151,968 random parameters, 214 tokens\n"
    as_json = run("init", "mini-init", "--out", tmp_path / "b", "--json", "--set", "architecture.num_hidden_layers=1")
    assert json.loads(as_json.stdout) == {"out": str(tmp_path / "b"), "parameters": 151968, "tokens": 214}
    assert "or give `--out OUT`" in str(run("init", "mini-init").exception)


def test_help() -> None:
    """Every command is listed with what it does."""
    text = run("--help").stdout
    assert all(word in text for word in ("sft", "ppo", "grpo", "init", "data", "configs"))
    for name in ("sft", "ppo", "grpo"):
        assert "--resume" in run(name, "--help").stdout


def ended(words: list[str], out: Path, number: int) -> subprocess.CompletedProcess[str]:
    """A run that gets a signal once it has saved a state, and what it said."""
    with subprocess.Popen([*SURGERY, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not any(out.glob("resume/checkpoint-*/complete")):  # each goes for the next
            time.sleep(0.01)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, TERMINATED, "to go on")],
)
def test_ended_from_outside(
    config: Path, materials: Materials, tmp_path: Path, number: int, code: int, last: str
) -> None:
    """Ctrl-C and SIGTERM end a run with the shell's codes, and it is said that `--resume` goes on; no traceback."""
    out = tmp_path / "out"
    words = ["train", "sft", config, "--model", materials.model, "--out", out, "--set", "epochs=200"]
    done = ended([*map(str, words)], out, number)
    assert done.returncode == code
    assert done.stdout == ""
    assert "what was saved is kept: run the same command with `--resume` to go on" in done.stderr
    assert done.stderr.rstrip().endswith(last)
    assert "Traceback" not in done.stderr


def test_one_message(tmp_path: Path) -> None:
    """An error is one message on stderr and code 1, from `python -m surgery` too."""
    done = subprocess.run([*SURGERY, "train", "sft", "none.yaml"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: found neither a file nor a bundled configuration `none.yaml`")
    assert len(done.stderr.splitlines()) == 1


def launched(words: list[Any], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command of ours as two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, "surgery", *map(str, words)], capture_output=True, text=True, cwd=cwd, env=environment,
        timeout=120,
    )  # fmt: skip


def test_two_processes(config: Path, materials: Materials, tmp_path: Path) -> None:
    """Two processes are one run: one directory, one report, the weights and figures of one up to rounding."""
    from safetensors.torch import load_file

    words = ["train", "sft", config, "--model", materials.model, "--set", "device=auto"]
    words += ["--set", "data.n=16", "--set", "optimizer.eps=1e-4"]
    done = launched([*words, "--out", "two", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["step"] for row in report["checkpoints"]] == [2, 4]
    assert done.stderr.count("training: 4 steps") == 1
    assert run(*words[1:], "--out", tmp_path / "one").exit_code == 0
    one, two = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in {"step", "loss", "id_loss", "ood_loss", "learning_rate", "grad_norm"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


def test_errors_of_two_processes(config: Path, materials: Materials, tmp_path: Path) -> None:
    """What all processes find wrong is said once."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    done = launched(["train", "sft", config, "--model", materials.model, "--out", "out"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("holds no run of `surgery train`") == 1
    assert "error: `out` exists" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, rank: str, shown: bool) -> None:
    """Of several processes one shows a report; of an error the others speak only if nobody has ended them."""
    from trainers import cli as module
    from trainers.report import Report

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(api, "train", lambda *_, **__: Report("sft", "m", "o", 1, ()))
    assert ("steps" in run("sft", "c", "--json").stdout) == shown

    def fail(*_: Any, **__: Any) -> None:
        raise SurgeryError("no")

    monkeypatch.setattr(api, "train", fail)
    done = run("sft", "c")
    assert done.exit_code == 1
    assert isinstance(done.exception, SurgeryError) == shown
    assert done.stderr == ("" if shown else "error in process 1: no\n")
