"""Pipelines from YAML: what is in them, and everything that is wrong at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surgery import bundled
from tests.trainers.reproduce.fabricated import pipeline
from trainers.errors import ConfigError
from trainers.reproduce.loading import FOLDER, load
from trainers.reproduce.options import parse
from trainers.reproduce.pipeline import arguments

BUNDLED = ("mini", "paper")

NOTHING: Any = {"title": "none", "models": {}}
BROKEN = """\
name: Broken
summary: many faults
stages:
  - {name: one, title: a, run: [trian, sft, x, --out, one], makes: one}
  - {name: one, title: b, run: [diff, a, two/final, --out, $sed], makes: one/inner}
  - {name: three, title: c, run: [eval, t, m, --out, two], makes: two, needs: [for], colour: red}
  - {name: four, title: d, run: [eval, t, m], makes: ../up}
experiments:
  - {title: e, models: {sft: nowhere}, learned: {rl: sft}, controls: [other], sweeps: [twoo], paper: gpt}
"""


def test_names() -> None:
    """These pipelines come with the package."""
    assert tuple(bundled.names(FOLDER)) == BUNDLED


@pytest.mark.parametrize("name", BUNDLED)
def test_each_bundled_pipeline(name: str) -> None:
    """It loads, says what it shows and what it cannot, and every command would take its words."""
    loaded = load(name)
    assert loaded.name == name
    assert loaded.summary.endswith(".")
    assert loaded.shows
    assert loaded.limits
    for stage in loaded.stages:
        parse(stage.words(0))
    assert loaded.text.startswith("#")


def test_stages_depend_on_what_they_read() -> None:
    """By the paths in their commands, and in the files that the commands name."""
    needs = load("mini").needs
    assert needs["init"] == ()
    assert needs["base"] == ("init",)
    assert needs["control"] == ("sft", "hands")  # the hands are named in control.yaml alone
    assert needs["ranks"] == ("base", "sft")
    assert load("mini").after("ppo") == {"scores", "diff", "swap"}


def test_what_only_sounds_like_a_result() -> None:
    """Roles, models of a sweep, summaries and values that are called as what a stage makes are no needs."""
    stages = [
        {"name": name, "title": name, "run": ["train", "init", "mini-init", "--out", name], "makes": name}
        for name in ("base", "sft", "swap", "kept")
    ]
    run = ["sweep", "tried.yaml", "swap/final", "x", "--out", "tried", "--set", "keep=base"]
    stages.append({"name": "tried", "title": "t", "run": run, "makes": "tried"})
    settings = ["--set=data={file: base}", "--set", "held_out.id.file=sft", "--set", "optimizer=swap", "--set", "a=[b"]
    run = ["train", "sft", "y", "--model=kept/final", "--out", "set", *settings]
    stages.append({"name": "set", "title": "s", "run": run, "makes": "set"})
    tried = {"name": "base", "models": ["base", "sft"], "start": "sft", "summary": "what kept does to base/final"}
    tried["variants"] = [{"recipe": "kept/recipe.yaml", "bind": {"base": "sft"}}]
    made = load(
        {"name": "n", "summary": "s.", "files": {"tried.yaml": tried}, "stages": stages, "experiments": [NOTHING]}
    )
    assert made.needs["tried"] == ("swap", "kept")
    assert made.needs["set"] == ("base", "sft", "kept")


def test_every_fault_at_once() -> None:
    """Each with line and path, and a suggestion where there is one."""
    with pytest.raises(ConfigError) as error:
        load_text(BROKEN)
    expected = [
        "found `Broken`; expected a name of small letters",
        "a stage cannot run `trian`; did you mean `train`?",
        "an earlier stage is called `one`, too",
        "`one/inner` and `one` of an earlier stage overlap",
        "unknown variable `$sed`; expected `$seed`",
        "`two/final` is made by the stage `three`, which comes later",
        "`for` is no stage",
        "unknown key `colour`",
        "expected a path below the seed's directory",
        "no stage makes `nowhere`",
        "`rl` is not among `models`",
        "`other` is not among `models`",
        "no stage makes `twoo`; did you mean `two`?",
        "found `gpt`; expected `llama`, `qwen`",
    ]
    text = str(error.value)
    assert [part for part in expected if part not in text] == []
    assert "broken.yaml:4 stages[0].run[0]: " in text


def load_text(text: str) -> Any:
    """A pipeline from a file of that text."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        path = Path(directory) / "broken.yaml"
        path.write_text(text)
        try:
            return load(path)
        except ConfigError as error:
            raise ConfigError(
                [type(f)(f.where.replace(f"{directory}/", ""), f.message) for f in error.faults]
            ) from None


def test_what_is_no_pipeline() -> None:
    """A missing file names the nearest bundled one; text that is no map says what is expected."""
    with pytest.raises(ConfigError, match="neither a file nor a bundled pipeline `minii`; did you mean `mini`"):
        load("minii")
    with pytest.raises(ConfigError, match="expected a map with the keys"):
        load_text("- a list\n")


def test_the_words_of_a_stage() -> None:
    """The seed is put in, and training goes on where it was; a digest tells commands apart, and their files."""
    loaded = load("mini")
    stages = {stage.name: stage for stage in loaded.stages}
    assert stages["ppo"].words(3)[-2:] == ("seed=3", "--resume")
    assert "--resume" not in stages["init"].words(0)
    launched = "torchrun --standalone --nproc-per-node 2 --module surgery train sft mini-base --model init"
    assert stages["base"].shown(3).startswith(launched)
    assert (stages["base"].processes, stages["ppo"].processes) == (2, 1)
    assert loaded.file("ranks.yaml", 4)["evaluation"]["seeds"] == [4]
    assert loaded.digest(stages["ranks"], 0) != loaded.digest(stages["ranks"], 1)
    data: Any = loaded.model_dump(mode="json")
    data["files"]["ranks.yaml"]["keep"] = "all"
    changed = load(data)
    assert changed.digest(changed.stages[10], 0) != loaded.digest(loaded.stages[10], 0)
    assert changed.digest(changed.stages[11], 0) == loaded.digest(loaded.stages[11], 0)


def test_a_command_is_no_path() -> None:
    """`train data sft` names no stage that is called `sft`."""
    assert arguments(["train", "data", "sft", "x"]) == ["x"]
    assert arguments(["diff", "sft", "rl"]) == ["sft", "rl"]
    assert pipeline().needs["base"] == ()
