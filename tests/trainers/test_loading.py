"""From YAML to a configuration: everything that is wrong with it at once, where it stands, and what to write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from surgery import bundled
from trainers.config import GrpoConfig, PpoConfig, SftConfig, Training
from trainers.errors import ConfigError
from trainers.loading import FOLDER, load

SMALLEST: Mapping[str, Any] = {"model": "m", "out": "o", "data": {"task": "general_points"}}
GIVE = "or give `--out OUT`"
QUANTITY = "a count such as `64`, a percentage from `0%` to `100%`, or `all`"
KINDS: Mapping[str, type[Training]] = {"sft": SftConfig, "ppo": PpoConfig, "grpo": GrpoConfig}


def faults(source: Any, settings: Mapping[str, object] | None = None, kind: type[Training] = SftConfig) -> list[str]:
    """The lines of the message about a configuration that is wrong."""
    with pytest.raises(ConfigError) as caught:
        load(kind, source, settings or {})
    return str(caught.value).splitlines()


def written(tmp_path: Path, text: str) -> Path:
    """A configuration file."""
    path = tmp_path / "c.yaml"
    path.write_text(text, "utf-8")
    return path


def test_all_faults_at_once(tmp_path: Path) -> None:
    """Each fault has its line, its path and what to do; what only follows from another is not said."""
    path = written(
        tmp_path,
        """model: [1]
data: {tsk: general_points, n: 0, file: 3}
bach_size: 4
optimizer: {learning_rate: -1, schedule: cosin, warmup: 3x, min_learning_rate: 2}
epochs: 1.5
epochs: 2
report_to: tensorboard
held_out: 5
loss_every: yes
micro_batch_size: true
precision: 16
save_every: 0
""",
    )
    at = str(path)
    expected = [
        f"{at}:1 model: found a list; expected text",
        f"{at}:1: `out` is missing; expected the directory of the run, which holds its checkpoints; {GIVE}",
        f"{at}:2 data.file: found `3`; expected text",
        f"{at}:2 data.n: found `0`; expected 1 or more",
        f"{at}:2 data.tsk: unknown key `tsk`; did you mean `task`?",
        f"{at}:3 bach_size: unknown key `bach_size`; did you mean `batch_size`?",
        f"{at}:4 optimizer.learning_rate: found `-1`; expected more than 0.0",
        (
            f"{at}:4 optimizer.schedule: found `cosin`; expected `cosine`, `linear`, `constant`, `wsd`; "
            "did you mean `cosine`?"
        ),
        f"{at}:4 optimizer.warmup: found `3x`; expected {QUANTITY}",
        f"{at}:5 epochs: found `1.5`; expected a whole number",
        f"{at}:6 epochs: `epochs` is already set on line 5 and again on line 6; keep one",
        f"{at}:7 report_to: found `tensorboard`; expected a list: `[tensorboard]`",
        f"{at}:8 held_out: found `5`; expected a map",
        f"{at}:9 loss_every: found the text `yes`; expected a whole number",
        f"{at}:10 micro_batch_size: found `true`; expected a whole number",
        f"{at}:11 precision: found `16`; expected `auto`, `float32`, `bfloat16`",
        f"{at}:12 save_every: found `0`; expected 1 or more",
    ]
    assert faults(path) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {}}, "data: expected `task` or `file`, and not both"),
        ({"data": {"task": "a", "file": "b"}}, "data: expected `task` or `file`, and not both"),
        ({"data": {"file": "b", "split": "ood"}}, "data: `parameters` and `split` belong to a task; a file has none"),
        ({"data": None}, "data: found nothing; expected a map"),
        ({"seed": -1}, "seed: found `-1`; expected 0 or more"),
        ({"seed": 2**31}, "seed: found `2147483648`; expected less than 2147483648"),
        ({"optimizer": {"betas": [0.9, 1]}}, "optimizer.betas: found [0.9, 1.0]; expected two numbers from 0"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas"),
        ({"report_to": ["wanb"]}, "report_to[0]: found `wanb`; expected"),
        ({"keep": "bst"}, "keep: found `bst`; expected `all`, `best`; did you mean `best`?"),
        ({"accuracy": {"evry": 3}}, "accuracy.evry: unknown key `evry`; did you mean `every`?"),
        ({"optimizer": {"learning_rate": 1e-6, "min_learning_rate": 1e-5}}, "found `min_learning_rate` 1e-05 above"),
        ({"optimizer": {"min_learning_rate": 1e-9, "schedule": "linear"}}, "is where `cosine` ends"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate"),
        ({"epochs": "2"}, "epochs: found the text `2`; expected a whole number"),
        ({"batch_size": 2.0}, "batch_size"),
    ],
)  # fmt: skip
def test_a_fault(changes: dict[str, Any], message: str) -> None:
    """What is not allowed is said where it stands, and once."""
    found = faults({**SMALLEST, **changes})
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml:1: the configuration is empty; expected a map with keys such as `model`, `out` and `data`"),
        ("- 1\n", "c.yaml:1: found a list; expected a map with keys"),
        ("model: m\n  out: o\n", "c.yaml:2: not valid YAML"),
        ("model: m\n---\nout: o\n", "c.yaml:2: a second document starts here; expected one"),
        ("model: &m m\nout: *m\n", "found the YAML alias `*m`"),
        ("model: m\nout: o\ndata: {task: t}\nseed: .nan\n", "c.yaml:4 seed: found `.nan`; expected a finite number"),
    ],
)
def test_yaml_faults(tmp_path: Path, text: str, message: str) -> None:
    """Faults of the YAML itself are those of a configuration; no word of recipes."""
    found = "\n".join(faults(written(tmp_path, text)))
    assert message in found
    assert "recipe" not in found


def test_numbers_may_be_whole() -> None:
    """Where a number is wanted, a whole one will do."""
    config = load(SftConfig, {**SMALLEST, "optimizer": {"learning_rate": 1, "eps": 1, "betas": [0, 0]}})
    assert config.optimizer.learning_rate == 1.0
    assert config.optimizer.betas == (0.0, 0.0)


def test_settings() -> None:
    """Values are replaced by the path of their keys, text being YAML; sections that are not there are made."""
    given = {
        "optimizer.learning_rate": "1e-5", "data.parameters.target": "36", "accuracy.every": 7,
        "report_to": "[wandb]", "optimizer.warmup": "3%", "chat": "false", "data.n": "null",
    }  # fmt: skip
    source = {**SMALLEST, "data": {"task": "general_points", "n": 3}}
    config = load(SftConfig, source, given)
    assert config.optimizer.learning_rate == 1e-5
    assert config.data.parameters == {"target": 36}
    assert config.data.n is None
    assert config.accuracy is not None
    assert config.accuracy.every == 7
    assert config.report_to == ("wandb",)
    assert str(config.optimizer.warmup) == "3%"
    assert not config.chat
    assert source["data"] == {"task": "general_points", "n": 3}, "the caller's mapping is not touched"


def test_settings_replace_what_is_wrong(tmp_path: Path) -> None:
    """A value that a setting replaces is not at fault, even where the file has it twice."""
    path = written(tmp_path, "model: m\nout: o\ndata: {task: t}\nepochs: x\nepochs: 3\n")
    assert load(SftConfig, path, {"epochs": "2"}).epochs == 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.lr", "1", "unknown key `lr`; expected: `learning_rate`"),
        ("epochs", "x", "found the text `x`; expected a whole number"),
        ("epochs", "[1", "not valid YAML"),
        ("epochs", ".inf", "expected a finite number"),
        ("model.x", "3", "found no map at `model` to set `x` in"),
        ("a..b", "1", "found `a..b`; expected keys with a dot between them"),
        (".", "1", "found `.`; expected keys with a dot between them"),
        ("held_out", "{n: 0}", "found `0`; expected 1 or more"),
    ],
)
def test_faults_of_settings(name: str, value: str, message: str) -> None:
    """What a setting has brought in is its fault, not that of a line; nothing else is said."""
    found = faults(SMALLEST, {name: value})
    assert len(found) == 1
    assert found[0].startswith(f"--set {name}")
    assert message in found[0]


def test_given_by_options() -> None:
    """`model` and `out` come as they are, without being read as YAML; None leaves them alone."""
    config = load(SftConfig, SMALLEST, given={"model": "1e3", "out": None})
    assert (config.model, config.out) == ("1e3", "o")
    with pytest.raises(ConfigError) as caught:
        load(SftConfig, {"data": {"task": "t"}})
    missing = (
        "`model` is missing; expected the checkpoint to begin with: a directory or a hub id; or give `--model MODEL`"
    )
    assert missing in str(caught.value)


@pytest.mark.parametrize("name", [name for name in bundled.names(FOLDER) if not name.endswith("-init")])
def test_bundled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bundled configuration of a trainer, whose name is in its own, lacks no more than model and directory."""
    monkeypatch.chdir(tmp_path)  # where no file has the name
    kind = next((KINDS[part] for part in name.split("-") if part in KINDS), SftConfig)
    assert load(kind, name, given={"model": "m", "out": "o"}).out == "o"


def test_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is called like a bundled configuration is meant, not that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft-small").write_text(json.dumps({**SMALLEST, "seed": 77}))
    assert load(SftConfig, "sft-small").seed == 77


def test_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there is compared with what is, files beside it included."""
    monkeypatch.chdir(tmp_path)
    assert faults("sft-smal") == [
        "found neither a file nor a bundled configuration `sft-smal`; did you mean `sft-small`?"
    ]
    (tmp_path / "mine.yaml").touch()
    assert faults("mne.yaml")[0].endswith("did you mean `mine.yaml`?")
    assert "bundled configurations: " in faults("something else")[0]
    assert "cannot be read: Is a directory" in faults(tmp_path)[0]
    assert "cannot be read" in faults("a\0b")[0]


@pytest.mark.parametrize(("kind", "more"), [
    (SftConfig, {"accuracy": {}, "held_out": {"ood": {"file": "f"}}, "optimizer": {"warmup": "3%"}}),
    (PpoConfig, {"lambda": 0.5, "rollout": {"engine": "vllm", "options": {"max_model_len": 64}}}),
    (GrpoConfig, {"success": {"splits": ["id"]}}),
])  # fmt: skip
def test_round_trip(kind: type[Training], more: dict[str, Any]) -> None:
    """What `run.json` and `training.json` hold is read back as an equal configuration."""
    config = load(kind, {**SMALLEST, **more, "report_to": ["tensorboard"]})
    dumped = json.loads(json.dumps(config.model_dump(mode="json", by_alias=True)))
    assert load(kind, dumped) == config
