"""The manifest says what was done to each tensor, and `verify` finds whatever differs from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blake3 import blake3

import surgery
from surgery.checkpoint import open_checkpoint
from surgery.errors import VerifyError
from tests.pairs import files, llama, near, write

RECIPE = {
    "name": "reset-norms",
    "models": ["base", "sft"],
    "steps": [
        {"op": "reset_layers", "from": "base", "select": {"tensors": ["norm"]}},
        {"op": "linear", "models": ["base", "sft"], "select": {"tensors": ["mlp"]}},
    ],
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output in two files."""
    base = llama(layers=2)
    models = [write(tmp_path / "base", base, 2), write(tmp_path / "sft", near(base), 2)]
    return surgery.apply(RECIPE, models, tmp_path / "out").out


def test_manifest_lists_every_tensor_with_the_digest_of_its_bytes(out: Path) -> None:
    """Name, file, dtype, shape, what was done, what was read, and BLAKE3 of the bytes in the file; a line each."""
    manifest = json.loads((out / "surgery.json").read_text())
    rows = {row["name"]: row for row in manifest["tensors"]}
    checkpoint = open_checkpoint(out)
    assert rows.keys() == checkpoint.tensors.keys()
    for name, info in checkpoint.tensors.items():
        content = (out / info.file).read_bytes()[info.start : info.start + info.nbytes]
        assert rows[name]["blake3"] == blake3(content).hexdigest()
        assert (rows[name]["file"], rows[name]["dtype"], tuple(rows[name]["shape"])) == (info.file, "BF16", info.shape)
    assert (rows["model.norm.weight"]["done"], rows["model.norm.weight"]["read"]) == (["copy"], ["base"])
    up = rows["model.layers.1.mlp.up_proj.weight"]
    assert (up["done"], up["read"]) == (["linear"], ["base", "sft"])
    lines = (out / "surgery.json").read_text().splitlines()
    assert sum('"blake3"' in line for line in lines) == len(rows)


def test_manifest_says_where_everything_came_from(out: Path) -> None:
    """Versions, the recipe as written and as run, the inputs with their files; chains of outputs are linked."""
    manifest = json.loads((out / "surgery.json").read_text())
    assert manifest["recipe"]["name"] == "reset-norms"
    assert manifest["recipe"]["resolved"]["steps"][0]["from"] == "base"
    assert set(manifest["versions"]) >= {"surgery", "torch"}
    assert list(manifest["inputs"]) == ["base", "sft"]
    assert set(manifest["inputs"]["base"]["files"]) == {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert manifest["inputs"]["base"]["manifest"] is None
    again = surgery.apply(RECIPE, [out, out], out.with_name("again")).out
    linked = json.loads((again / "surgery.json").read_text())["inputs"]["base"]["manifest"]
    assert linked == blake3((out / "surgery.json").read_bytes()).hexdigest()


def test_a_sound_output_verifies(out: Path) -> None:
    """With the numbers of what was compared."""
    verified = surgery.verify(out)
    assert verified.tensors == len(open_checkpoint(out).tensors)
    assert verified.nbytes == sum(path.stat().st_size for path in out.glob("*.safetensors"))


@pytest.mark.parametrize("byte", [-1, -900])
def test_one_flipped_bit_is_found_and_named(out: Path, byte: int) -> None:
    """In the last tensor, and in an earlier one."""
    path = out / "model-00002-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerifyError, match=r"\A`model\.\S+`: was changed: its digest is \w+..., expected \w+...\Z"):
        surgery.verify(out)


def test_everything_that_differs_is_told_at_once(out: Path) -> None:
    """A changed config, a missing shard, a file too many: three faults."""
    (out / "config.json").write_text("{}")
    (out / "model-00001-of-00002.safetensors").unlink()
    (out / "model-00003-of-00002.safetensors").write_bytes(files(out)["model-00002-of-00002.safetensors"])
    with pytest.raises(VerifyError) as caught:
        surgery.verify(out)
    text = str(caught.value)
    assert len(caught.value.faults) == 3
    assert "`config.json`: was changed" in text
    assert "model-00001-of-00002.safetensors` does not exist" in text
    assert "`model-00003-of-00002.safetensors`: is not in the manifest" in text


def test_the_header_is_part_of_what_is_verified(out: Path) -> None:
    """A changed `__metadata__` leaves every tensor as it was and is found all the same."""
    path = out / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"format":"pt"', b'"format":"xx"'))
    with pytest.raises(VerifyError, match=r"`model-00001-of-00002.safetensors`: its header was changed"):
        surgery.verify(out)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "\0", "nonsense", '{"format": 1' + "[" * 5000])
def test_a_manifest_that_is_none_is_told(out: Path, text: str) -> None:
    """Damaged or foreign manifests give one message."""
    (out / "surgery.json").write_text(text)
    with pytest.raises(VerifyError, match="cannot be read as a manifest"):
        surgery.verify(out)


def test_a_directory_without_a_manifest_is_told(tmp_path: Path) -> None:
    """And so is one that does not exist, or is a file."""
    (tmp_path / "file").touch()
    for name, found in ((".", "found no `surgery.json`"), ("nowhere", "it does not exist"), ("file", "it is no direc")):
        with pytest.raises(VerifyError, match=found):
            surgery.verify(tmp_path / name)


def test_a_manifest_that_names_other_places_is_not_followed(out: Path) -> None:
    """File names in a manifest are plain: `../secret` is refused, not read."""
    manifest = json.loads((out / "surgery.json").read_text())
    manifest["files"]["../base/config.json"] = "0" * 64
    (out / "surgery.json").write_text(json.dumps(manifest))
    with pytest.raises(VerifyError, match=r"`\.\./base/config.json`"):
        surgery.verify(out)
