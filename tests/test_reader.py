from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from surgery.checkpoint import open_checkpoint
from surgery.errors import CheckpointError
from surgery.reader import Reader
from tests.conftest import MakeCheckpoint, llama_arrays

NAME = "model.layers.1.mlp.down_proj.weight"


def test_reads_every_tensor(make_checkpoint: MakeCheckpoint) -> None:
    """The bytes of every tensor, read by many threads at once from several shards, are those that were saved."""
    arrays = llama_arrays(layers=4)
    checkpoint = open_checkpoint(make_checkpoint(arrays=arrays, shards=3))

    def read(name: str) -> bool:
        info = checkpoint.tensors[name]
        buffer = bytearray(info.nbytes)
        reader.prefetch(info)
        reader.read_into(info, buffer)
        return buffer == arrays[name].tobytes()

    with Reader(checkpoint) as reader, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, list(arrays) * 5))


def test_opens_each_shard_once(make_checkpoint: MakeCheckpoint) -> None:
    """Threads that need a shard at the same time share one descriptor, and `close` leaves none behind."""
    checkpoint = open_checkpoint(make_checkpoint())
    barrier = threading.Barrier(8)

    def ask(_: int) -> int:
        barrier.wait()
        return reader.fd("model.safetensors")

    with Reader(checkpoint) as reader, ThreadPoolExecutor(8) as pool:
        descriptors = set(pool.map(ask, range(8)))
    assert len(descriptors) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors.pop())
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.fd("model.safetensors")


def test_reads_a_part(make_checkpoint: MakeCheckpoint) -> None:
    """`offset` and the buffer's length choose the bytes; a range beyond the tensor is a mistake of the caller."""
    arrays = llama_arrays()
    checkpoint = open_checkpoint(make_checkpoint(arrays=arrays))
    info, data = checkpoint.tensors[NAME], arrays[NAME].tobytes()
    with Reader(checkpoint) as reader:
        buffer = bytearray(10)
        reader.read_into(info, buffer, 7)
        assert buffer == data[7:17]
        reader.read_into(info, memoryview(buffer)[2:4], info.nbytes - 2)
        assert buffer == data[7:9] + data[-2:] + data[11:17]
        reader.read_into(info, bytearray(), info.nbytes)
        for offset in (-1, info.nbytes - 9):
            with pytest.raises(ValueError, match="bytes; asked for 10"):
                reader.read_into(info, buffer, offset)


def test_short_reads_are_continued(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that returns three bytes at a time gives the same result."""
    arrays = llama_arrays()
    checkpoint = open_checkpoint(make_checkpoint(arrays=arrays))
    preadv = os.preadv

    def three(fd: int, buffers: Sequence[memoryview], position: int) -> int:
        return preadv(fd, [buffers[0][:3]], position)

    monkeypatch.setattr(os, "preadv", three)
    info = checkpoint.tensors[NAME]
    buffer = bytearray(info.nbytes)
    with Reader(checkpoint) as reader:
        reader.read_into(info, buffer)
    assert buffer == arrays[NAME].tobytes()


def test_input_error_names_file_and_tensor(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails gives one message with the file, the tensor and the system's reason."""
    checkpoint = open_checkpoint(make_checkpoint())

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with Reader(checkpoint) as reader, pytest.raises(CheckpointError) as caught:
        reader.read_into(checkpoint.tensors[NAME], bytearray(8))
    assert all(part in str(caught.value) for part in ("model.safetensors", NAME, "Input/output error"))


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_changed_files_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    """A file that vanished, was replaced, or was touched since its header was read is not read."""
    changes: dict[str, Callable[[Path], object]] = {
        "vanished": lambda path: path.unlink(),
        "touched": lambda path: os.utime(path, ns=(0, 0)),
        "shorter": lambda path: os.truncate(path, 100),
        "directory": replace_by_directory,
    }
    for name, change in changes.items():
        checkpoint = open_checkpoint(make_checkpoint(name))
        change(checkpoint.shards[0].path)
        with Reader(checkpoint) as reader, pytest.raises(CheckpointError, match=r"model\.safetensors"):
            reader.read_into(checkpoint.tensors[NAME], bytearray(8))


def test_truncation_while_reading(make_checkpoint: MakeCheckpoint) -> None:
    """A file cut short after it was opened gives an error with file and tensor, not stale or endless reading."""
    checkpoint = open_checkpoint(make_checkpoint())
    info = checkpoint.tensors[NAME]
    with Reader(checkpoint) as reader:
        reader.read_into(info, bytearray(8))
        os.truncate(checkpoint.shards[0].path, info.start + 4)
        with pytest.raises(CheckpointError, match=f"{NAME}.*truncated"):
            reader.read_into(info, bytearray(8))


def test_prefetch_is_a_hint(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no advice does not matter."""
    checkpoint = open_checkpoint(make_checkpoint())

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    with Reader(checkpoint) as reader:
        monkeypatch.setattr(os, "posix_fadvise", refuse)
        reader.prefetch(checkpoint.tensors[NAME])
        monkeypatch.delattr(os, "posix_fadvise")
        reader.prefetch(checkpoint.tensors[NAME])


def test_descriptors_are_not_inherited(make_checkpoint: MakeCheckpoint) -> None:
    """Child processes do not keep the shards open."""
    checkpoint = open_checkpoint(make_checkpoint())
    with Reader(checkpoint) as reader:
        assert not os.get_inheritable(reader.fd("model.safetensors"))


def test_empty_tensor(make_checkpoint: MakeCheckpoint) -> None:
    """A tensor without elements is read without touching the file's bytes."""
    arrays = {"a": np.zeros((0, 4), np.float32), "b": np.ones(2, np.float32)}
    checkpoint = open_checkpoint(make_checkpoint(arrays=arrays))
    with Reader(checkpoint) as reader:
        reader.read_into(checkpoint.tensors["a"], bytearray())
        reader.prefetch(checkpoint.tensors["a"])
