"""The output's files are the ones that the safetensors library itself would accept and read alike."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from surgery.checkpoint import open_checkpoint
from surgery.dtypes import DTYPES
from surgery.layout import Entry, lay_out
from tests.pairs import llama, write

DTYPE = st.sampled_from([DTYPES[name] for name in ("F32", "BF16", "F16", "I64", "U8", "BOOL")])
SHAPE = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(st.lists(st.tuples(DTYPE, SHAPE), min_size=1, max_size=12), st.integers(1, 300))
def test_files_hold_every_tensor_once_without_holes(tmp_path_factory, kinds, shard_bytes) -> None:  # type: ignore[no-untyped-def]
    """safetensors opens every file; slots are disjoint, aligned to their dtype, and cover the body."""
    directory = tmp_path_factory.mktemp("layout")
    start = open_checkpoint(write(directory / "start", {"x": torch.zeros(1)}))
    entries = [Entry(f"t{i}", dtype, shape, "model.safetensors") for i, (dtype, shape) in enumerate(kinds)]
    layout = lay_out(entries, start, shard_bytes)
    assert layout.slots.keys() == {entry.name for entry in entries}
    seen = {}
    for file in layout.files:
        (directory / file.name).write_bytes(file.header + bytes(file.size - len(file.header)))
        with safe_open(directory / file.name, "numpy") as opened:
            seen |= {name: (file.name, tuple(opened.get_slice(name).get_shape())) for name in opened.keys()}  # noqa: SIM118
        slots = sorted((s for s in layout.slots.values() if s.file == file.name), key=lambda s: (s.start, s.nbytes))
        ends = [len(file.header), *(slot.start + slot.nbytes for slot in slots)]
        assert [slot.start for slot in slots] == ends[:-1]
        assert ends[-1] == file.size
        assert all((slot.start - len(file.header)) % (slot.dtype.bits // 8) == 0 for slot in slots)
        assert file.size - len(file.header) <= shard_bytes or len([s for s in slots if s.nbytes]) <= 1
    assert seen == {slot.name: (slot.file, slot.shape) for slot in layout.slots.values()}
    if layout.index is not None:
        assert json.loads(layout.index)["weight_map"] == {name: slot.file for name, slot in layout.slots.items()}


def test_shards_keep_names_and_order_of_the_start(tmp_path: Path) -> None:
    """Without a shard size, the output's files hold the same tensors under the same names in the same order."""
    path = write(tmp_path / "start", llama(layers=2), 3)
    start = open_checkpoint(path)
    entries = [Entry(info.name, info.dtype, info.shape, info.file) for info in start.tensors.values()]
    layout = lay_out(entries, start, None)
    assert [file.name for file in layout.files] == [shard.name for shard in start.shards]
    assert [(slot.file, slot.name) for slot in layout.slots.values()] == [
        (info.file, info.name) for info in start.tensors.values()
    ]
    assert layout.index_name == "model.safetensors.index.json"


def test_a_single_file_of_any_name_becomes_the_one_that_loaders_look_for(tmp_path: Path) -> None:
    """`weights.safetensors` is written as `model.safetensors`, without an index."""
    path = write(tmp_path / "start", llama(layers=1))
    (path / "model.safetensors").rename(path / "weights.safetensors")
    start = open_checkpoint(path / "weights.safetensors")
    entries = [Entry(info.name, info.dtype, info.shape, info.file) for info in start.tensors.values()]
    layout = lay_out(entries, start, None)
    assert [file.name for file in layout.files] == ["model.safetensors"]
    assert layout.index is None
