"""`surgery eval` as a user meets it: results, messages, exit codes, and nothing else on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import evalkit.scorer
import evalkit.tasks
from evalkit.engines.base import Prompt
from evalkit.errors import EngineError
from tests.commands import Run
from tests.evalkit.fake_engine import FakeEngine
from tests.evalkit.sums import Sums
from tests.evalkit.test_scorer import answer
from tests.tiny_models import save_tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints: `a`, which is always right, and `b`, which never is."""
    directory = tmp_path_factory.mktemp("models")
    return save_tiny(directory / "a", seed=0), save_tiny(directory / "b", seed=1)


@pytest.fixture
def run(surgery_command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `surgery eval` in this process, in a directory of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evalkit.tasks, "TASKS", {**evalkit.tasks.TASKS, "sums": Sums})
    monkeypatch.setattr(evalkit.scorer, "make_engine", lambda *_: FakeEngine(answer))

    return partial(surgery_command, "eval")


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_table(run: Run, models: tuple[Path, Path]) -> None:
    """Scores with intervals, and the second model against the first; the settings stand above."""
    code, out, err = run("sums", *models, "--n", 20, "--engine", "fake", "--attempts", 2)
    assert code == 0
    shown = lines(out)
    assert shown[0].startswith("sums top 100, part test, seed 0, engine fake, chat on, attempts 2")
    assert shown[1] == "accuracy, % id n = 20 ood n = 20"
    assert shown[2].endswith("a 100.0 [83.9, 100.0] 100.0 [83.9, 100.0]")
    assert shown[3].endswith("b 0.0 [ 0.0, 16.1] 0.0 [ 0.0, 16.1]")
    assert any(line.startswith("id") and "-100.0 [" in line and "*" in line for line in shown)
    assert "80 samples are new, 0 are from earlier runs" in out
    assert [line.split(": ")[-1] for line in err.splitlines() if "turn" in line] == [
        "turn 1, 40 episodes", "turn 1, 40 episodes", "turn 2, 40 episodes"
    ]  # fmt: skip


def test_json_and_files(run: Run, models: tuple[Path, Path], tmp_path: Path) -> None:
    """With `--json` the report alone is on stdout, the same as in the results, with every setting and digest."""
    code, out, _ = run("sums", *models, "--n", 5, "--engine", "fake", "--json", "--loss", "--out", "kept")
    assert code == 0
    report = json.loads(out)
    (file,) = (tmp_path / "kept").rglob("report.json")
    assert json.loads(file.read_text()) == report
    assert report["settings"]["task_version"] == 1
    assert report["settings"]["versions"] == {"fake": "1"}
    assert report["settings"]["sampling"] == {"temperature": 0.0, "max_tokens": 256, "stop": []}
    assert [row["model"] for row in report["models"]] == [str(model) for model in models]
    assert all(len(row["digest"]) == 16 for row in report["models"])
    score = report["models"][1]["scores"]["ood"]
    assert score["accuracy"]["value"] == 0
    assert score["failures"] == {"wrong value": 15}
    assert score["loss_per_token"]["value"] == 0.5
    summaries = {json.loads(path.read_text())["digest"] for path in (tmp_path / "kept").rglob("summary.json")}
    assert summaries == {row["digest"] for row in report["models"]}


def test_failures(run: Run, models: tuple[Path, Path]) -> None:
    """`--failures` shows what was asked and answered, and why it is wrong."""
    _, out, _ = run("sums", models[1], "--n", 3, "--engine", "fake", "--failures", "--split", "id")
    assert "wrong value" in out
    assert "asked: What is" in out
    assert "0 is not the sum." in out


def test_prompt_file(run: Run, models: tuple[Path, Path], tmp_path: Path) -> None:
    """A template of the user's own is what the model is asked, and leads to results of its own."""
    (tmp_path / "prompt.jinja").write_text("{{ a }} plus {{ b }} is")
    run("sums", models[0], "--n", 2, "--engine", "fake")
    code, out, _ = run("sums", models[0], "--n", 2, "--engine", "fake", "--prompt", "prompt.jinja", "--json")
    assert code == 0
    assert json.loads(out)["models"][0]["generated"] == 4
    prompts = {
        json.loads(line)["prompt"]
        for path in (tmp_path / "results").rglob("samples.jsonl")
        for line in path.read_text().splitlines()
    }
    assert len(prompts) == 8
    assert sum("plus" in prompt for prompt in prompts) == 4


@pytest.mark.parametrize("template", ["", "Well?"])
def test_a_prompt_that_says_nothing(run: Run, models: tuple[Path, Path], tmp_path: Path, template: str) -> None:
    """A template without any of the example's data is a mistake; the names of the data are told."""
    (tmp_path / "prompt.jinja").write_text(template)
    code, _, err = run("sums", models[0], "--engine", "fake", "--prompt", "prompt.jinja")
    assert code == 1
    assert "every prompt is the same or empty" in err
    assert "`{{ a }}`, `{{ b }}`" in err


def test_list(run: Run) -> None:
    """Every task with its splits and parameters, then what else can be scored, and the engines."""
    code, out, _ = run("--list")
    assert code == 0
    for name in ("general_points", "matrix_rank", "determinant", "jsonl", "lm_eval:NAME", "faces_13", "openai:URL"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sumz", "{a}"], 1, "error: unknown task `sumz`; did you mean `sums`?"),
        (["sums", "{a}", "--split", "odd"], 1, "error: sums has no split `odd`; did you mean `ood`?"),
        (["sums", "{a}", "--set", "topp=3"], 1, "did you mean `top`?"),
        (["sums", "{a}", "{a}"], 1, "twice; name each once"),
        (["sums", "nowhere"], 1, "`nowhere` does not exist"),
        (["sums", "{a}", "--prompt", "nowhere.jinja"], 1, "nowhere.jinja"),
        (["sums", "{a}", "--chat-template", "nowhere.jinja"], 2, "cannot read `nowhere.jinja`"),
        (["sums", "{a}", "--set", "top"], 2, "expected NAME=VALUE"),
        (["sums", "{a}", "--temperature", "-1"], 2, "--temperature"),
        (["sums", "{a}", "--n", "0"], 2, "--n"),
        (["sums"], 2, "MODEL"),
        (["sums", "{a}", "--set", "top=6", "--n", "50"], 1, "ask for at most that many (`--n "),
        (["lm_eval:x", "{a}", "--loss"], 1, "`loss` has no meaning for `lm_eval:x`"),
        (["lm_eval:x", "{a}", "--set", "shots=3"], 1, "expected `fewshot=NUMBER`"),
    ],
)
def test_mistakes(run: Run, models: tuple[Path, Path], arguments: list[str], code: int, message: str) -> None:
    """One clear message, and no results."""
    found, out, err = run(*(argument.format(a=models[0]) for argument in arguments))
    assert (found, out) == (code, "")
    assert message in err
    assert "kept" not in err
    assert not list(Path.cwd().rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "vlm"], "unknown engine `vlm`; did you mean `vllm`?"),
        (["--engine", "transformers", "--engine-option", "divice=cpu"], "did you mean `device`?"),
        (["--engine", "openai:nowhere"], "openai:"),
    ],
)
def test_wrong_engines(
    run: Run, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """Engines and their options are checked before anything is opened."""
    from evalkit.engines import make_engine

    monkeypatch.setattr(evalkit.scorer, "make_engine", make_engine)
    code, out, err = run("sums", models[0], *arguments)
    assert (code, out) == (1, "")
    assert message in err


@pytest.mark.parametrize("missing", ["regex", "transformers"])
def test_without_the_extra(models: tuple[Path, Path], tmp_path: Path, missing: str) -> None:
    """Where `pip install surgery` was all, the message says what to install."""
    code = f"import sys; sys.modules['{missing}'] = None; from surgery.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "eval", "determinant", models[0], "--engine", "transformers"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'surgery[eval]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_breaks(run: Run, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message is followed by what can be done: nothing that is finished is lost."""

    def broken(*_: object) -> str:
        raise EngineError("the engine broke")

    monkeypatch.setattr(evalkit.scorer, "make_engine", lambda *_: FakeEngine(broken))
    code, out, err = run("sums", models[0], "--n", 10, "--engine", "fake")
    assert (code, out) == (1, "")
    assert "what is finished is kept" in err
    assert err.endswith("error: the engine broke\n")


def test_interrupted(run: Run, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C says that nothing is lost; the same command goes on."""
    asked = 0

    def interrupted(model: str, prompt: Prompt) -> str:
        nonlocal asked
        asked += 1
        if asked == 5:
            raise KeyboardInterrupt
        return answer(model, prompt)

    monkeypatch.setattr(evalkit.scorer, "make_engine", lambda *_: FakeEngine(interrupted))
    code, out, err = run("sums", models[0], "--n", 10, "--engine", "fake")
    assert (code, out) == (130, "")
    assert "what is finished is kept: run the same command again" in err
    code, out, _ = run("sums", models[0], "--n", 10, "--engine", "fake", "--json")
    assert code == 0
    assert json.loads(out)["models"][0]["generated"] == 16
