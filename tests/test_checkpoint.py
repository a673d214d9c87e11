from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from surgery import hub
from surgery.checkpoint import open_checkpoint
from surgery.errors import CheckpointError
from tests.conftest import CONFIG, MakeCheckpoint, llama_arrays, write_checkpoint, write_raw

INDEX = "model.safetensors.index.json"


def edit_index(directory: Path, **changes: Any) -> None:
    """Change entries of the weight map; None removes one."""
    path = directory / INDEX
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if shard != "remove"}
    path.write_text(json.dumps(index))


def refused(source: str | Path) -> str:
    """The message with which a source is refused; it names the source or a file in it."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(source)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
def test_directory(make_checkpoint: MakeCheckpoint, shards: int) -> None:
    """All tensors of all shards are found, in the order of files and offsets, with config and index metadata."""
    arrays = llama_arrays()
    directory = make_checkpoint(arrays=arrays, shards=shards)
    found = open_checkpoint(directory)
    assert set(found.tensors) == set(arrays)
    places = [(info.file, info.start) for info in found.tensors.values()]
    assert places == sorted(places)
    assert [shard.name for shard in found.shards] == sorted({info.file for info in found.tensors.values()})
    for shard in found.shards:
        status = (directory / shard.name).stat()
        assert (shard.path, shard.size) == (directory / shard.name, status.st_size)
        assert (shard.mtime_ns, shard.metadata) == (status.st_mtime_ns, {"format": "pt"})
    assert found.index_name == (None if shards == 1 else INDEX)
    assert found.index_metadata == ({} if shards == 1 else {"total_size": sum(a.nbytes for a in arrays.values())})
    assert (found.source, found.root, found.config) == (str(directory), directory, CONFIG)
    assert (found.hub_id, found.revision, found.is_directory) == (None, None, True)


def test_single_file(make_checkpoint: MakeCheckpoint) -> None:
    """One file is a checkpoint of its own, without the configuration beside it."""
    path = make_checkpoint() / "model.safetensors"
    found = open_checkpoint(str(path))
    assert (found.root, found.is_directory, found.config) == (path.parent, False, {})
    assert [shard.name for shard in found.shards] == ["model.safetensors"]


def test_links_are_followed(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """A directory of links into another, as in the hub's cache, opens under its own names."""
    directory = make_checkpoint(shards=2)
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for i, file in enumerate(sorted(directory.iterdir())):
        blob = file.rename(tmp_path / f"blob{i}")
        (linked / file.name).symlink_to(os.path.relpath(blob, linked))
    (tmp_path / "link").symlink_to(linked)
    assert open_checkpoint(linked).tensors == open_checkpoint(tmp_path / "link").tensors


@pytest.mark.parametrize(
    "shard",
    ["/etc/passwd", "../model.safetensors", "sub/model.safetensors", "..", "", ".safetensors", "a\\b.safetensors",
     "a\0.safetensors", "a\x1b[1m.safetensors", "model.bin", 3, None, ["model.safetensors"], {"a": 1}],
)  # fmt: skip
def test_index_must_name_plain_files(make_checkpoint: MakeCheckpoint, shard: object) -> None:
    """A weight map that points anywhere but beside itself is refused, with the tensor, before a file is opened."""
    directory = make_checkpoint(shards=2)
    edit_index(directory, **{"model.norm.weight": shard})
    message = refused(directory)
    assert INDEX in message
    assert "model.norm.weight" in message
    assert "plain name" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[]", "list"),
        ("{}", "weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": ["a"]}', "weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "occurs twice"),
        ('{"metadata": 3, "weight_map": {"a": "model.safetensors"}}', "metadata"),
        ("[" * 200_000, "nested too deeply"),
        ("\udcff", "UTF-8"),
    ],
)
def test_malformed_index(make_checkpoint: MakeCheckpoint, content: str, message: str) -> None:
    """An index that is no JSON object with a weight map is refused by name."""
    directory = make_checkpoint(shards=2)
    (directory / INDEX).write_bytes(content.encode(errors="surrogateescape"))
    found = refused(directory)
    assert message in found
    assert INDEX in found


def test_index_of_absurd_size(make_checkpoint: MakeCheckpoint) -> None:
    """An index beyond the limit is refused unread."""
    directory = make_checkpoint(shards=2)
    with (directory / INDEX).open("r+b") as file:
        file.truncate(10**12)
    assert "more than 100000000" in refused(directory)


def test_missing_shard(make_checkpoint: MakeCheckpoint) -> None:
    """A shard that the index names and the directory lacks."""
    directory = make_checkpoint(shards=2)
    (directory / "model-00002-of-00002.safetensors").unlink()
    found = refused(directory)
    assert "model.safetensors.index.json` names 1 file (`model-00002-of-00002.safetensors`) that `" in found


def test_index_and_shards_disagree(make_checkpoint: MakeCheckpoint) -> None:
    """A tensor that is promised but absent, unknown to the index, or in another shard than it says."""
    directory = make_checkpoint(shards=2)
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    edit_index(directory, ghost=first)
    assert "promises tensor `ghost`" in refused(directory)
    edit_index(directory, **{"ghost": "remove", "model.norm.weight": "remove"})
    assert "`model.norm.weight`, but the index does not know it" in refused(directory)
    edit_index(directory, **{"model.norm.weight": first})
    assert f"`model.norm.weight`, but the index puts it in `{first}`" in refused(directory)
    edit_index(directory, **{"model.norm.weight": second})
    open_checkpoint(directory)


def test_tensor_in_two_shards(make_checkpoint: MakeCheckpoint) -> None:
    """A name that two shards hold is refused, whichever the index prefers."""
    directory = make_checkpoint(shards=2)
    extra = llama_arrays() | {"z": np.zeros(1, np.float32)}
    save_file({name: extra[name] for name in ("z", "model.norm.weight")}, directory / "model-x.safetensors")
    edit_index(directory, z="model-x.safetensors")
    assert "model.norm.weight" in refused(directory)


@pytest.mark.parametrize("stray", ["model-00003-of-00003.safetensors", "model.safetensors"])
def test_weights_left_from_another_save(make_checkpoint: MakeCheckpoint, stray: str) -> None:
    """Shards of another save, or a whole model, beside those of the index are refused."""
    directory = make_checkpoint(shards=2)
    save_file(llama_arrays(), directory / stray)
    assert stray in refused(directory)


def test_formats_beside_the_checkpoint_are_ignored(make_checkpoint: MakeCheckpoint) -> None:
    """Mistral's `consolidated*` files and adapters beside a whole model do not disturb."""
    sharded = make_checkpoint("sharded", shards=2)
    for name in ("consolidated-00001-of-00002.safetensors", "consolidated.safetensors", "adapter_model.safetensors"):
        (sharded / name).write_bytes(b"not opened")
    (sharded / "consolidated.safetensors.index.json").write_text("not opened")
    assert open_checkpoint(sharded).index_name == INDEX
    single = make_checkpoint("single")
    (single / "consolidated.safetensors").write_bytes(b"not opened")
    (single / "adapter_model.safetensors").write_bytes(b"not opened")
    assert [shard.name for shard in open_checkpoint(single).shards] == ["model.safetensors"]


def test_index_that_names_the_single_file(make_checkpoint: MakeCheckpoint) -> None:
    """An index over `model.safetensors` alone is consistent."""
    directory = make_checkpoint()
    weight_map = dict.fromkeys(llama_arrays(), "model.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(directory).index_name == INDEX


def test_index_of_another_name(make_checkpoint: MakeCheckpoint) -> None:
    """One index of any name will do; two without the usual name are ambiguous."""
    directory = make_checkpoint(shards=2)
    (directory / INDEX).rename(directory / "model.fp16.safetensors.index.json")
    assert open_checkpoint(directory).index_name == "model.fp16.safetensors.index.json"
    (directory / "b.safetensors.index.json").write_text("{}")
    assert "several indices" in refused(directory)


def test_ambiguous_directory(make_checkpoint: MakeCheckpoint) -> None:
    """Several files and no index, or one shard of many."""
    directory = make_checkpoint(shards=2)
    (directory / INDEX).unlink()
    assert "2 `.safetensors` files" in refused(directory)
    (directory / "model-00001-of-00002.safetensors").unlink()
    assert "one of 2 shards" in refused(directory)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin", "config.json"], "save_pretrained"),
        (["model.pth"], "save_pretrained"),
        (["model-q4.gguf"], "GGUF"),
        (["adapter_config.json", "adapter_model.safetensors"], "BASE+ADAPTER"),
        (["adapter_config.json", "adapter_model.bin"], "BASE+ADAPTER"),
        (["config.json"], "holds no `.safetensors` file"),
        ([], "holds no `.safetensors` file"),
    ],
)
def test_directories_of_other_kinds(tmp_path: Path, files: list[str], message: str) -> None:
    """Each kind is named, with what to do."""
    for name in files:
        (tmp_path / name).write_text("{}")
    assert message in refused(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.bin", "pickle"),
        ("model.pt", "pickle"),
        ("model.gguf", "GGUF"),
        ("model.safetensors.index.json", "give the directory"),
        ("model.dat", "does not end in"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, file: str, message: str) -> None:
    """Each kind is named, with what to do."""
    (tmp_path / file).write_bytes(b"GGUF" + b"\xff" * 20 if file.endswith("gguf") else b"\x80" * 20)
    assert message in refused(tmp_path / file)


def test_adapter_by_its_tensors(tmp_path: Path) -> None:
    """An adapter under the name of a model is recognised by what it holds."""
    save_file({"base.q_proj.lora_A.weight": np.zeros((2, 4), np.float32)}, tmp_path / "model.safetensors")
    assert "PEFT adapter" in refused(tmp_path)
    assert "PEFT adapter" in refused(tmp_path / "model.safetensors")


def test_no_tensors(tmp_path: Path) -> None:
    """A legal file without tensors is no model."""
    write_raw(tmp_path / "model.safetensors", {"__metadata__": {"a": "b"}})
    assert "holds no tensors" in refused(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("[]", "list"), ("{", "cannot be read"), ("[" * 200_000, "deeply")])
def test_malformed_config(make_checkpoint: MakeCheckpoint, content: str, message: str) -> None:
    """A configuration that is no JSON object is refused by name; infinities, which Python writes, are not."""
    directory = make_checkpoint()
    (directory / "config.json").write_text(content)
    found = refused(directory)
    assert message in found
    assert "config.json" in found
    (directory / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert open_checkpoint(directory).config["time_step_limit"] == [0.0, float("inf")]


def test_no_config(make_checkpoint: MakeCheckpoint) -> None:
    """A directory without a configuration opens, with an empty one."""
    directory = make_checkpoint()
    (directory / "config.json").unlink()
    assert open_checkpoint(directory).config == {}


def test_special_files_in_a_directory(make_checkpoint: MakeCheckpoint) -> None:
    """A FIFO, a directory or a dangling link in the place of a shard or the configuration is refused at once."""
    for file in ("model-00001-of-00002.safetensors", "config.json", INDEX):
        directory = make_checkpoint(file, shards=2)
        (directory / file).unlink()
        os.mkfifo(directory / file)
        assert "not a regular file" in refused(directory)
        (directory / file).unlink()
        (directory / file).mkdir()
        assert "not a regular file" in refused(directory)
        (directory / file).rmdir()
        (directory / file).symlink_to("nothing")
        assert "does not exist" in refused(directory)


def test_mistyped_paths(tmp_path: Path, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a path gets a message about paths and no look-up on the hub."""
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    make_checkpoint("models/sft-final")
    for source in ("models/sft-fnal", "./models/sft-fnal", str(tmp_path / "models/sft-fnal")):
        assert "did you mean" in refused(source)
        assert "sft-final" in refused(source)
    for source in (
        "nothing",
        "no/such/dir",
        "../no/such",
        "/no/such",
        "no/model.safetensors",
        "a\\b",
        "org/",
        "",
        "a b/c",
    ):
        assert "expected a directory" in refused(source)
    assert "write `models/sft-fnal@main`" in refused("models/sft-fnal")
    for source in (f"{'a' * 5000}/b", f"/{'a' * 5000}", "~nobody-of-this-name/model", "a\0b", "\udcff/x"):
        assert "expected a directory" in refused(source) or "cannot be opened" in refused(source)
    (tmp_path / "link.safetensors").symlink_to("nothing")
    assert "does not exist" in refused("link.safetensors")
    assert "did you mean `models/sft-final`" in refused("models")


def test_hub_id(make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id is fetched and opened; a path of that name is preferred."""
    directory = make_checkpoint("cache")
    asked = []

    def fetch(repo_id: str, revision: str | None) -> tuple[Path, str]:
        asked.append((repo_id, revision))
        return directory, "f" * 40

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    found = open_checkpoint("org/model@main")
    assert (found.hub_id, found.revision, found.source) == ("org/model", "f" * 40, "org/model@main")
    assert found.root == directory
    assert open_checkpoint("org/model").tensors == found.tensors
    assert asked == [("org/model", "main"), ("org/model", None)]
    make_checkpoint("org/model")
    assert open_checkpoint("org/model").hub_id is None
    assert len(asked) == 2


T, F = True, False


@pytest.mark.parametrize(
    ("config", "head", "tied"),
    [
        ({"tie_word_embeddings": T}, F, T),
        ({"tie_word_embeddings": T}, T, T),
        ({"tie_word_embeddings": F}, T, F),
        ({"tie_word_embeddings": F}, F, F),
        ({}, F, T),
        ({}, T, F),
        ({"architectures": ["GemmaForCausalLM"]}, F, T),
        ({"architectures": ["LlamaModel"]}, F, F),
        ({"architectures": ["LlamaForSequenceClassification"]}, F, F),
        ({"text_config": {"tie_word_embeddings": T}}, F, T),
        ({"text_config": {"tie_word_embeddings": F}}, F, F),
        ({"tie_word_embeddings": F, "text_config": {"tie_word_embeddings": T}}, F, T),
        ({"tie_word_embeddings": F, "text_config": {"tie_word_embeddings": T}}, T, F),
        ({"thinker_config": {"text_config": {"tie_word_embeddings": F}}}, F, F),
        ({"tie_word_embeddings": "yes", "text_config": 3, "architectures": "x"}, T, F),
    ],
)
def test_tied(tmp_path: Path, config: dict[str, Any], head: bool, tied: bool) -> None:
    """The configuration decides, that of the language model where the whole says nothing, else the headers."""
    found = open_checkpoint(write_checkpoint(tmp_path, llama_arrays(tied=not head), config=config))
    assert found.tied is tied
    assert found.anatomy.tied is tied
    assert found.anatomy.head == ("lm_head.weight" if head else None)


def test_opening_loads_no_torch() -> None:
    """Whatever plans from headers starts without torch, NumPy or the hub's client."""
    code = "import sys, surgery.reader, surgery.select; print({'torch', 'numpy', 'huggingface_hub'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
