"""Checkpoints of the trainers: ordinary ones, as their parent in all but the weights."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import surgery
from evalkit.digest import checkpoint_digest
from surgery.checkpoint import open_checkpoint
from tests.tiny_models import save_tiny
from trainers import checkpoints
from trainers.checkpoints import MANIFEST, Saver, read_manifest
from trainers.config import SftConfig, Training
from trainers.directory import RunDirectory
from trainers.errors import RunError, TrainingError
from trainers.loading import load
from trainers.parent import Parent, load_network, open_parent

NORM = "model.norm.weight"
Make = Callable[..., "Case"]


@dataclass(frozen=True)
class Case:
    """A network of a parent, and what writes it."""

    parent: Parent
    network: Any
    saver: Saver

    def save(self, step: int = 3, **changed: torch.Tensor) -> Path:
        """The checkpoint after a step, with some tensors changed."""
        weights = {**self.network.state_dict(), **changed}
        return self.saver.save(step, self.network, weights, {"loss": 0.5})


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """`make(parent, save_dtype=...)`: a case in a run's directory of its own."""
    opened: list[RunDirectory] = []

    def made(source: Path, template: str | None = None, **keys: Any) -> Case:
        out = tmp_path / f"out{len(opened)}"
        given = {"model": str(source), "out": str(out), "data": {"task": "general_points"}, **keys}
        config: Training = load(SftConfig, given)
        parent = open_parent(str(source))
        opened.append(RunDirectory(out, {}, False, False))
        saver = Saver(opened[-1], parent, "sft", config, {"seed": 5, "digest": "d"}, template)
        return Case(parent, load_network(parent, config), saver)

    yield made
    for directory in opened:
        directory.close()


def in_bfloat16(directory: Path, tied: bool) -> Path:
    """A bfloat16 checkpoint with one norm in float32."""
    save_tiny(directory, tied=tied, dtype=torch.bfloat16)
    weights = load_file(directory / "model.safetensors")
    weights[NORM] = weights[NORM].float()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def dtypes(directory: Path) -> dict[str, torch.dtype]:
    """Those of all tensors of a checkpoint."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        found.update({name: tensor.dtype for name, tensor in load_file(path).items()})
    return found


def companions(directory: Path) -> dict[str, bytes]:
    """The files beside the weights."""
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if not path.name.startswith("model") and path.name not in (MANIFEST, "README.md")
    }


@pytest.mark.parametrize("tied", [False, True])
def test_each_tensor_has_its_parents_dtype(tmp_path: Path, make: Make, tied: bool) -> None:
    """Trained in float32, stored as the parent stores each tensor; a tied head is not stored twice."""
    case = make(in_bfloat16(tmp_path / "parent", tied))
    assert {tensor.dtype for tensor in case.network.state_dict().values()} == {torch.float32}
    place = case.save()
    assert dtypes(place) == dtypes(tmp_path / "parent")
    assert ("lm_head.weight" in dtypes(place)) != tied
    before, after = load_file(tmp_path / "parent" / "model.safetensors"), load_file(place / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before), "untouched weights come back bit for bit"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_another_dtype(tmp_path: Path, make: Make, dtype: str) -> None:
    """`save_dtype` holds for all tensors and in `config.json`."""
    place = make(in_bfloat16(tmp_path / "parent", True), save_dtype=dtype).save()
    assert set(dtypes(place).values()) == {getattr(torch, dtype)}
    assert json.loads((place / "config.json").read_bytes())["dtype"] == dtype


def test_companions_are_the_parents(tmp_path: Path, make: Make) -> None:
    """Config, tokenizer, template and generation config have the parent's bytes, odd ones too."""
    parent = save_tiny(tmp_path / "parent")
    odd = {"temperature": 0.6, "do_sample": False}  # which transformers loads, and refuses to save
    (parent / "generation_config.json").write_text(json.dumps(odd))
    config = (parent / "config.json").read_text() + "\n\n"
    (parent / "config.json").write_text(config)
    (parent / "LICENSE").write_text("free")
    place = make(parent).save()
    assert companions(place) == companions(parent)


def test_no_generation_config_is_made_up(tmp_path: Path, make: Make) -> None:
    """Where the parent has none, the checkpoint has none."""
    parent = save_tiny(tmp_path / "parent")
    (parent / "generation_config.json").unlink()
    assert not (make(parent).save() / "generation_config.json").exists()


def test_shards(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large checkpoints have several files with an index, and each can be read by whoever can read the config."""
    monkeypatch.setattr(checkpoints, "SHARD", "50KB")
    case = make(save_tiny(tmp_path / "parent"))
    umask = os.umask(0o027)
    try:
        place = case.save()
    finally:
        os.umask(umask)
    shards = sorted(place.glob("*.safetensors"))
    assert len(shards) > 2
    assert {path.stat().st_mode & 0o777 for path in shards} == {0o640}
    assert set(open_checkpoint(str(place)).tensors) == set(case.parent.checkpoint.tensors)


def test_manifest_is_true(tmp_path: Path, make: Make) -> None:
    """`training.json` says from what and how, and the digest of every other file."""
    case = make(save_tiny(tmp_path / "parent"))
    place = case.save(7)
    manifest = read_manifest(place)
    assert (manifest["trainer"], manifest["step"], manifest["figures"]) == ("sft", 7, {"loss": 0.5})
    assert manifest["parent"]["digest"] == checkpoint_digest(open_checkpoint(str(tmp_path / "parent")))
    assert manifest["data"] == {"seed": 5, "digest": "d"}
    assert load(SftConfig, manifest["config"]) == case.saver.config
    files = {path.name: blake3(path.read_bytes()).hexdigest() for path in place.iterdir() if path.name != MANIFEST}
    assert manifest["files"] == files
    assert not [path for path in place.parent.iterdir() if path.name.endswith(".partial")]


def test_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    """Reading what is no checkpoint of ours says so."""
    with pytest.raises(RunError, match=r"cannot read `.*training\.json`"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_it(tmp_path: Path, make: Make, tied: bool, caplog: pytest.LogCaptureFixture) -> None:
    """No key is missing or left over, nothing is warned of, and the tokenizer comes with its template."""
    place = make(in_bfloat16(tmp_path / "parent", tied)).save()
    with caplog.at_level(logging.WARNING):
        network, report = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(place)
    assert not any(report.values())
    assert not caplog.records
    assert network.get_output_embeddings() is not None
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tmp_path / "parent").chat_template


def test_chat_template(tmp_path: Path, make: Make) -> None:
    """A template that a run was given goes with its checkpoints, and is what the tokenizer uses."""
    place = make(save_tiny(tmp_path / "parent"), template="{{ messages[0].content }}!").save()
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"


def test_surgery_edits_it(tmp_path: Path, make: Make) -> None:
    """A checkpoint and its parent are edited like any other pair."""
    case = make(save_tiny(tmp_path / "parent"))
    generator = torch.Generator().manual_seed(0)
    changed = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in case.network.state_dict().items()
        if tensor.ndim == 2
    }
    place = case.save(**changed)
    surgery.apply("restore-top-20pct-rotate", [tmp_path / "parent", place], tmp_path / "edited", workers=1)
    surgery.verify(tmp_path / "edited")
    assert (tmp_path / "edited" / "tokenizer.json").read_bytes() == (place / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_refuses_what_is_not_finite(tmp_path: Path, make: Make, value: float) -> None:
    """NaN, infinity, and what the stored dtype makes infinite: tensor and last good checkpoint are named."""
    case = make(save_tiny(tmp_path / "parent"), save_dtype="float16")
    norm = case.network.state_dict()[NORM].clone()
    norm[3] = value
    message = f"step 9: `{NORM}` holds NaN or infinity as float16; lower the learning rate; no checkpoint was written"
    with pytest.raises(TrainingError, match=message):
        case.save(9, **{NORM: norm})
    good = case.save(8)
    with pytest.raises(TrainingError, match=f"the last good checkpoint is `{good}`"):
        case.save(9, **{NORM: norm})
    assert sorted(path.name for path in good.parent.iterdir()) == ["checkpoint-8", "run.json"]


def test_saves_again(tmp_path: Path, make: Make) -> None:
    """A checkpoint of a step that is there already, as after a kill, is replaced, and what the kill left is gone."""
    case = make(save_tiny(tmp_path / "parent"))
    place = case.save()
    (place / "stale").touch()
    partial = place.with_name(f".{place.name}.partial")
    partial.mkdir()
    (partial / "model-00001-of-00002.safetensors").touch()
    assert case.save() == place
    assert not partial.exists()
    assert not (place / "stale").exists()
    assert [path.name for path in place.glob("*.safetensors")] == ["model.safetensors"]


SAVE = """
import resource, signal, sys
from pathlib import Path
from trainers.checkpoints import Saver
from trainers.config import SftConfig
from trainers.directory import RunDirectory
from trainers.errors import RunError
from trainers.loading import load
from trainers.parent import load_network, open_parent

model, out, limit = sys.argv[1:]
config = load(SftConfig, {"model": model, "out": out, "data": {"task": "general_points"}})
parent = open_parent(model)
network = load_network(parent, config)
saver = Saver(RunDirectory(Path(out), {}, False, False), parent, "sft", config, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
saver.save(1, network, network.state_dict(), {})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    saver.save(2, network, network.state_dict(), {})
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [20_000])
def test_disk_without_room(tmp_path: Path, limit: int) -> None:
    """Where a file does not fit, one message names the last good checkpoint, and nothing half-written is left."""
    parent, out = save_tiny(tmp_path / "parent"), tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", SAVE, parent, out, str(limit)], capture_output=True, text=True, check=True
    )
    (message,) = done.stdout.splitlines()
    assert message.startswith(f"cannot write the checkpoint `{out / '.checkpoint-2.partial'}`: ")
    assert message.endswith(
        f"make room and go on with `--resume`; the last good checkpoint is `{out / 'checkpoint-1'}`"
    )
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1", "run.json"]


def test_card(tmp_path: Path, make: Make) -> None:
    """The card says from what and how, and nothing of where."""
    place = make(save_tiny(tmp_path / "parent"), seed=9).save()
    card = (place / "README.md").read_text("utf-8")
    assert "# parent, supervised fine-tuning, step 3" in card
    assert "seed: 9" in card
    assert str(tmp_path) not in card


def metadata(path: Path) -> Mapping[str, str]:
    """Of a file of weights."""
    with safe_open(path, "pt") as file:
        found: Mapping[str, str] = file.metadata()
    return found


def test_format_is_named(tmp_path: Path, make: Make) -> None:
    """The weights say that they are torch's, without which transformers does not load them."""
    assert metadata(make(save_tiny(tmp_path / "parent")).save() / "model.safetensors") == {"format": "pt"}
