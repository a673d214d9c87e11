from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from surgery.dtypes import DTYPES
from surgery.errors import CheckpointError
from surgery.header import MAX_HEADER, read_header
from tests.conftest import write_raw


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


ENTRY = json.dumps(entry()).encode()


def judge(path: Path) -> dict[str, tuple[list[int], str]] | None:
    """Names, shapes and dtypes as the safetensors library reads them, or None where it refuses."""
    try:
        with safe_open(path, "numpy") as file:
            return {
                name: (list(file.get_slice(name).get_shape()), file.get_slice(name).get_dtype())
                for name in file.keys()  # noqa: SIM118  (no dict, though it looks like one)
            }
    except SafetensorError:
        return None


def ours(path: Path) -> dict[str, tuple[list[int], str]] | None:
    try:
        header = read_header(path)
    except CheckpointError:
        return None
    return {name: (list(info.shape), info.dtype.name) for name, info in header.tensors.items()}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    """Names, shapes, dtypes, metadata and byte ranges are those of the arrays that were saved."""
    arrays: dict[str, NDArray[Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.float16),
    }
    path = tmp_path / "x.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    header = read_header(path)
    data = path.read_bytes()
    assert header.metadata == {"format": "np"}
    assert (header.size, header.mtime_ns) == (len(data), path.stat().st_mtime_ns)
    assert set(header.tensors) == set(arrays)
    for name, info in header.tensors.items():
        assert (info.name, info.file, info.shape) == (name, "x.safetensors", arrays[name].shape)
        assert info.elements == arrays[name].size
        assert data[info.start : info.start + info.nbytes] == arrays[name].tobytes()


def test_tensors_are_in_offset_order(tmp_path: Path) -> None:
    """The order of the header's JSON does not matter; that of the bytes does."""
    header = {"late": entry(offsets=[4, 8]), "early": entry(offsets=[0, 4])}
    assert list(read_header(write_raw(tmp_path / "x.safetensors", header, bytes(8))).tensors) == ["early", "late"]


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_of_the_table_is_one_of_the_library(name: str, tmp_path: Path) -> None:
    """Eight elements of each dtype take the bytes that the library expects, and one byte less is refused."""
    nbytes = DTYPES[name].nbytes(8)
    path = write_raw(tmp_path / "x.safetensors", {"a": entry(name, [8], [0, nbytes])}, bytes(nbytes))
    assert ours(path) == judge(path) == {"a": ([8], name)}
    less = {"a": entry(name, [8], [0, nbytes - 1])}
    assert ours(write_raw(path, less, bytes(nbytes - 1))) is None


LEGAL: dict[str, tuple[bytes | dict[str, Any], bytes]] = {
    "no tensors": ({}, b""),
    "metadata alone": ({"__metadata__": {"a": "b"}}, b""),
    "null metadata": ({"__metadata__": None, "a": entry()}, bytes(4)),
    "scalar": ({"a": entry(shape=[])}, bytes(4)),
    "no elements": ({"a": entry(shape=[0, 3], offsets=[0, 0])}, b""),
    "no elements, one long side": ({"a": entry(shape=[0, 2**63], offsets=[0, 0])}, b""),
    "empty tensors at both ends": (
        {"a": entry(shape=[0], offsets=[0, 0]), "b": entry(), "c": entry(shape=[0], offsets=[4, 4])},
        bytes(4),
    ),
    "packed half bytes": ({"a": entry("F4", [2], [0, 1])}, bytes(1)),
    "padding before and after": (b"  " + json.dumps({"a": entry()}).encode() + b" \n\t", bytes(4)),
    "name of any script": ({"à.ß/é \U0001f600": entry()}, bytes(4)),
    "escaped pair": (b'{"\\ud83d\\ude00":' + json.dumps(entry()).encode() + b"}", bytes(4)),
}


@pytest.mark.parametrize("case", LEGAL)
def test_legal_headers(case: str, tmp_path: Path) -> None:
    """Unusual headers that the library reads are read alike."""
    path = write_raw(tmp_path / "x.safetensors", *LEGAL[case])
    assert judge(path) is not None
    assert ours(path) == judge(path)


def field(name: str, raw: str) -> bytes:
    table = {"dtype": '"F32"', "shape": "[1]", "data_offsets": "[0,4]"} | {name: raw}
    return ('{"a":{' + ",".join(f'"{key}":{value}' for key, value in table.items()) + "}}").encode()


BAD: dict[str, tuple[Any, bytes, str]] = {
    "not UTF-8": (b'{"\xff":1}', b"", "UTF-8"),
    "not JSON": (b"{a}", b"", "cannot be read"),
    "empty header": (b"", b"", "cannot be read"),
    "byte order mark": (b"\xef\xbb\xbf{}", b"", "cannot be read"),
    "trailing NUL": (b"{}\0\0", b"", "cannot be read"),
    "a list": (b"[]", b"", "list"),
    "nested deeply": (b"[" * 200_000, b"", "nested too deeply"),
    "nested deeply inside": (field("shape", "[" * 100_000 + "]" * 100_000), bytes(4), "nested too deeply"),
    "huge integer": (field("shape", f"[{'9' * 5000}]"), bytes(4), "cannot be read"),
    "half a surrogate pair": (b'{"a\\ud800":' + json.dumps(entry()).encode() + b"}", bytes(4), "surrogate"),
    "NUL in a name": ({"a\0b": entry()}, bytes(4), "NUL"),
    "two tensors of one name": (b'{"a":%s,"a":%s}' % (ENTRY, ENTRY), bytes(4), "`a` occurs twice"),
    "metadata of integers": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "metadata a list": ({"__metadata__": ["a"]}, b"", "__metadata__"),
    "entry null": ({"a": None}, b"", "expected an entry"),
    "entry a list": ({"a": ["F32", [1], [0, 4]]}, bytes(4), "expected an entry"),
    "field missing": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "expected an entry"),
    "field unknown": ({"a": entry(strides=[1])}, bytes(4), "expected an entry"),
    "dtype unknown": ({"a": entry("F99")}, bytes(4), "found dtype `F99`"),
    "dtype in lower case": ({"a": entry("f32")}, bytes(4), "found dtype `f32`"),
    "dtype a list": ({"a": entry(["F32"])}, bytes(4), "found dtype"),
    "dtype nested": (field("dtype", "[" * 700 + "]" * 700), bytes(4), "found dtype"),
    "shape a string": ({"a": entry(shape="1")}, bytes(4), "found shape"),
    "shape negative": ({"a": entry(shape=[-1, -1])}, bytes(4), "found shape"),
    "shape minus zero": (field("shape", "[-0]"), b"", "found shape"),
    "shape boolean": ({"a": entry(shape=[True])}, bytes(4), "found shape"),
    "shape float": ({"a": entry(shape=[1.0])}, bytes(4), "found shape"),
    "shape NaN": (field("shape", "[NaN]"), bytes(4), "found shape"),
    "shape beyond 64 bits": ({"a": entry(shape=[0, 2**64], offsets=[0, 0])}, b"", "found shape"),
    "product overflows": ({"a": entry(shape=[2**33, 2**33])}, bytes(4), "more than 2^64"),
    "product overflows, then zero": ({"a": entry(shape=[2**33, 2**33, 0], offsets=[0, 0])}, b"", "more than 2^64"),
    "bits overflow": ({"a": entry("F64", [2**61], [0, 0])}, b"", "larger than any file"),
    "offsets three": ({"a": entry(offsets=[0, 4, 4])}, bytes(4), "data_offsets"),
    "offsets reversed": ({"a": entry(offsets=[4, 0])}, bytes(4), "data_offsets"),
    "offsets negative": ({"a": entry(offsets=[-4, 0])}, bytes(4), "data_offsets"),
    "offsets outside the file": ({"a": entry(shape=[2], offsets=[0, 8])}, bytes(4), "ends at byte"),
    "offsets overlap": ({"a": entry(), "b": entry(shape=[2], offsets=[0, 8])}, bytes(8), "overlaps"),
    "offsets identical": ({"a": entry(), "b": entry()}, bytes(4), "overlaps"),
    "empty tensor inside another": ({"a": entry(shape=[0], offsets=[2, 2]), "b": entry()}, bytes(4), "overlaps"),
    "gap at the start": ({"a": entry(offsets=[4, 8])}, bytes(8), "gap"),
    "gap between": ({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12), "gap"),
    "too few bytes for the shape": ({"a": entry(shape=[2])}, bytes(4), "takes 8 bytes"),
    "half a byte": ({"a": entry("F4", [3], [0, 2])}, bytes(2), "whole bytes"),
    "trailing bytes": ({"a": entry()}, bytes(5), "belong to no tensor"),
}  # fmt: skip

STRICTER = {"NUL in a name", "two tensors of one name", "entry a list", "field unknown"}


@pytest.mark.parametrize("case", BAD)
def test_bad_headers_are_refused(case: str, tmp_path: Path) -> None:
    """Each fault is named together with the file; all but four kinds are refused by the library too."""
    header, body, message = BAD[case]
    path = write_raw(tmp_path / "bad.safetensors", header, body)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert "bad.safetensors" in str(caught.value)
    assert (judge(path) is None) == (case not in STRICTER)


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_header_of_absurd_length_is_refused_unread(length: int, tmp_path: Path) -> None:
    """The claimed length is checked against the limit before anything is allocated."""
    path = write_raw(tmp_path / "x.safetensors", b"{}", length=length)
    with path.open("r+b") as file:  # sparse: long enough for the claim to be possible
        file.truncate(min(length + 8, 2**40))
    with pytest.raises(CheckpointError, match="claims a header"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 3), struct.pack("<Q", 3) + b"{}"])
def test_truncated_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """No prefix of a file passes for a file."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="bytes"):
        read_header(path)


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    """What a clone without Git LFS holds is called what it is."""
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(CheckpointError, match="in place of the file; fetch it: `git lfs pull`"):
        read_header(path)


def test_gguf_content_is_recognised(tmp_path: Path) -> None:
    """A GGUF file under a wrong name is called what it is."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"GGUF\x03\0\0\0" + bytes(100))
    with pytest.raises(CheckpointError, match="GGUF"):
        read_header(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A FIFO without a writer, a directory, a device, a dangling and a circular link are refused without waiting."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "circular").symlink_to(tmp_path / "circular")
    for path in [*tmp_path.iterdir(), Path("/dev/zero"), tmp_path / "nothing", tmp_path / "\0"]:
        with pytest.raises(CheckpointError):
            read_header(path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that must not be read is named, with the system's reason (root may read all: so it is feigned)."""
    path = write_raw(tmp_path / "x.safetensors", {})

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("surgery.header.os.open", refuse)
    with pytest.raises(CheckpointError, match=r"x\.safetensors` cannot be opened: Permission denied"):
        read_header(path)


def test_links_are_followed(tmp_path: Path) -> None:
    """A link reads like its target, under the name of the link."""
    write_raw(tmp_path / "blob", {"a": entry()}, bytes(4))
    (tmp_path / "x.safetensors").symlink_to("blob")
    assert read_header(tmp_path / "x.safetensors").tensors["a"].file == "x.safetensors"


sizes = st.one_of(st.integers(0, 3), st.sampled_from([-1, 2**32, 2**63, 2**64 - 1, 2**64, 1.0, True, None, "1"]))
entries = st.builds(
    entry,
    dtype=st.sampled_from(["F32", "BF16", "U8", "F4", "F6_E2M3", "BOOL", "F31", 3]),
    shape=st.lists(sizes, max_size=3),
    offsets=st.lists(st.one_of(st.integers(0, 16), sizes), min_size=1, max_size=3),
)


@given(header=st.dictionaries(st.sampled_from(["a", "b", "", "__metadata__"]), entries), body=st.binary(max_size=16))
@settings(max_examples=300)
def test_agrees_with_the_library_on_random_entries(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], body: bytes
) -> None:
    """Whatever the library refuses is refused, and what it reads is read alike."""
    path = write_raw(tmp_path_factory.getbasetemp() / "random.safetensors", header, body)
    assert ours(path) == judge(path)


VALID = json.dumps(
    {
        "__metadata__": {"k": "v"},
        "a": entry("BF16", [2, 1], [0, 4]),
        "b": entry("U8", [3], [4, 7]),
        "c": entry("F32", [0], [7, 7]),
    }
).encode()


@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.sampled_from(b'0123456789-.eE[]{}",:\\ \0\xffautF')),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=500)
def test_agrees_with_the_library_on_damaged_bytes(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]
) -> None:
    """Bytes of a good header are overwritten: ours is never more lenient, and never reads anything else."""
    raw = bytearray(VALID)
    for position, byte in edits:
        raw[position] = byte
    path = write_raw(tmp_path_factory.getbasetemp() / "damaged.safetensors", bytes(raw), bytes(7))
    mine, theirs = ours(path), judge(path)
    assert mine in (theirs, None)
    if mine is None and theirs is not None:  # only by the rules that are stricter on purpose
        with pytest.raises(CheckpointError, match=r"occurs twice|expected an entry|NUL"):
            read_header(path)
