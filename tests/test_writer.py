"""Where an output may go, and what becomes of what was there. Kills are in test_executor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from blake3 import blake3

import surgery
from surgery.errors import OutputError
from surgery.journal import Journal
from surgery.writer import Places, Writer, region_digest
from tests.pairs import files, llama, near, read, write

AVERAGE = {"name": "average", "models": ["base", "sft"], "steps": [{"op": "linear", "models": ["base", "sft"]}]}
HALF = {**AVERAGE, "steps": [{"op": "linear", "models": ["base", "sft"], "weights": [0.9, 0.1]}]}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and its fine-tuned model."""
    base = llama(layers=1)
    return write(tmp_path / "models" / "base", base), write(tmp_path / "models" / "sft", near(base))


@pytest.mark.parametrize("out", ["models/base", "models/sft/inside", "models", ".", "link", "models/x/../sft"])
def test_an_output_that_touches_an_input_is_refused(pair: tuple[Path, Path], tmp_path: Path, out: str) -> None:
    """Equal to, inside or around an input, through links too, and even with `overwrite`."""
    (tmp_path / "link").symlink_to(pair[0])
    before = files(tmp_path / "models")
    with pytest.raises(OutputError, match="is, contains or lies inside the input"):
        surgery.apply(AVERAGE, pair, tmp_path / out, overwrite=True)
    assert files(tmp_path / "models") == before


def test_an_output_around_the_target_of_linked_shards_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A model made of links, as in the hub's cache, must not be replaced by way of what the links point to."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in pair[0].iterdir():
        (linked / path.name).symlink_to(path)
    with pytest.raises(OutputError, match="the input `base`"):
        surgery.apply(AVERAGE, [linked, pair[1]], pair[0], overwrite=True)


def test_an_existing_output_is_kept_unless_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Without `overwrite` nothing changes; with it the new checkpoint takes the whole place of the old one."""
    out = tmp_path / "out"
    surgery.apply(AVERAGE, pair, out)
    before = files(out)
    with pytest.raises(OutputError, match=r"exists already; choose another OUT, or add `--overwrite`"):
        surgery.apply(HALF, pair, out)
    assert files(out) == before
    (out / "stale.safetensors").write_bytes(b"old")
    surgery.apply(HALF, pair, out, overwrite=True)
    assert "stale.safetensors" not in files(out)
    assert not torch.equal(read(out)["lm_head.weight"], read(pair[0])["lm_head.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "out"]


def test_only_checkpoints_are_overwritten(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """`--overwrite` on somebody's documents is refused; an empty directory may be used as it is."""
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds no checkpoint"):
        surgery.apply(AVERAGE, pair, documents, overwrite=True)
    with pytest.raises(OutputError, match="is no directory"):
        surgery.apply(AVERAGE, pair, documents / "thesis.tex", overwrite=True)
    (tmp_path / "empty").mkdir()
    surgery.apply(AVERAGE, pair, tmp_path / "empty")
    surgery.verify(tmp_path / "empty")


@pytest.mark.parametrize("fresh", [False, True])
def test_leftovers_without_a_journal_are_not_ours(pair: tuple[Path, Path], tmp_path: Path, fresh: bool) -> None:
    """A directory that happens to be called `out.partial` is not written into, let alone deleted."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"`\S+out.partial` exists and has no journal"):
        surgery.apply(AVERAGE, pair, tmp_path / "out", fresh=fresh)
    assert files(tmp_path / "out.partial") == {"notes.txt": b"mine"}


def test_a_directory_that_cannot_be_written_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A file where a directory is needed: the operating system's reason, and no traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*File exists"):
        surgery.apply(AVERAGE, pair, tmp_path / "file" / "out")


def test_parents_of_the_output_are_made(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """`runs/today/out` needs no `mkdir` before."""
    surgery.apply(AVERAGE, pair, tmp_path / "runs" / "today" / "out")
    assert surgery.verify(tmp_path / "runs" / "today" / "out").tensors == len(read(pair[1]))


def test_durable_gives_the_same_bytes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Waiting for the disk changes nothing else."""
    surgery.apply(AVERAGE, pair, tmp_path / "a", durable=True)
    surgery.apply(AVERAGE, pair, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_copies_without_the_kernels_help_are_the_same(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `copy_file_range` does not exist, or does not work between two disks, bytes are copied through memory."""
    recipe = {"name": "r", "models": ["base", "sft"]}
    step = {"op": "reset_layers", "from": "base", "select": {"tensors": ["norm"]}}
    surgery.apply({**recipe, "steps": [step]}, pair, tmp_path / "kernel")

    def other_disk(*_: object) -> int:
        raise OSError(18, os.strerror(18))

    monkeypatch.setattr(os, "copy_file_range", other_disk)
    surgery.apply({**recipe, "steps": [step]}, pair, tmp_path / "memory")
    monkeypatch.delattr(os, "copy_file_range")
    surgery.apply({**recipe, "steps": [step]}, pair, tmp_path / "absent")
    assert files(tmp_path / "kernel") == files(tmp_path / "memory") == files(tmp_path / "absent")


def test_region_digest_is_blake3_of_the_region(tmp_path: Path) -> None:
    """Over several buffers, from an offset; a file that ends early gives another digest instead of an error."""
    data = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open("rb") as file:
        assert region_digest(file.fileno(), 17, 2_500_000) == blake3(data[17:2_500_017]).hexdigest()
        assert region_digest(file.fileno(), 2_999_999, 2) != blake3(data[2_999_999:] + b"\0").hexdigest()
        assert region_digest(file.fileno(), 5, 0) == blake3(b"").hexdigest()


def test_a_journal_line_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    """What was written after a torn line is still read as lines of its own."""
    journal = Journal(tmp_path / "journal")
    journal.begin({"plan": "p"})
    journal.record("a", "1")
    journal.close()
    with (tmp_path / "journal").open("ab") as file:
        file.write(b'{"tensor": "b", "bla')
    journal = Journal(tmp_path / "journal")
    assert journal.identity == {"plan": "p"}
    assert journal.finished == {"a": "1"}
    journal.record("c", "3")
    journal.close()
    journal = Journal(tmp_path / "journal")
    assert journal.finished == {"a": "1", "c": "3"}
    journal.close()


def test_after_a_damaged_line_the_journal_goes_on(tmp_path: Path) -> None:
    """What follows the damage is forgotten; what is recorded from then on is kept."""
    lines = ('{"journal": 1}', '{"tensor": "a", "blake3": "1"}', "\0\0", '{"tensor": "b", "blake3": "2"}', "")
    (tmp_path / "journal").write_text("\n".join(lines))
    journal = Journal(tmp_path / "journal")
    assert journal.finished == {"a": "1"}
    journal.record("c", "3")
    journal.close()
    journal = Journal(tmp_path / "journal")
    assert journal.finished == {"a": "1", "c": "3"}
    journal.close()


@pytest.mark.parametrize("text", [b"", b"nonsense\n", b'["journal"]\n', b'{"journal": 99}\n', b"\xff\xfe\n"])
def test_a_journal_that_is_none_has_no_identity(tmp_path: Path, text: bytes) -> None:
    """Unreadable journals are like foreign ones."""
    (tmp_path / "journal").write_bytes(text)
    journal = Journal(tmp_path / "journal")
    assert journal.identity is None
    assert journal.finished == {}
    journal.close()


def test_closing_after_a_failure_to_begin_leaves_no_descriptor(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A writer that refuses its leftovers holds nothing open."""
    made = surgery.plan(AVERAGE, pair)
    Writer(Places(tmp_path / "out"), made, {"plan": "a"}).close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OutputError):
        Writer(Places(tmp_path / "out"), made, {"plan": "b"})
    assert len(list(Path("/proc/self/fd").iterdir())) == before
