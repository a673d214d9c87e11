"""Where an output may go, and what becomes of what was there. Kills are in test_executor."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from blake3 import blake3

import surgery
from surgery.descriptors import reserve_descriptors
from surgery.errors import CheckpointError, OutputError, PlanError
from surgery.journal import Journal
from surgery.plan import Plan, TensorPlan
from surgery.unfinished import Places
from surgery.writer import Writer, region_digest
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


@pytest.mark.parametrize("suffix", [".partial", ".partial.jsonl"])
def test_an_input_that_lies_where_the_work_would_go_is_refused(pair: tuple[Path, Path], suffix: str) -> None:
    """`apply R x.partial sft x` must not write into, clear or rename its input, with `fresh` either."""
    base = pair[0].rename(pair[0].with_name(f"out{suffix}"))
    before = files(base)
    for fresh in (False, True):
        with pytest.raises(OutputError, match="lies inside the input `base`"):
            surgery.apply(AVERAGE, [base, pair[1]], base.with_name("out"), fresh=fresh)
    assert files(base) == before


def test_a_partial_that_is_a_link_is_not_followed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither written through nor deleted."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    (tmp_path / "out.partial").symlink_to(tmp_path / "precious")
    (tmp_path / "out.partial.jsonl").write_text("")
    with pytest.raises(OutputError, match="no output of ours"):
        surgery.apply(AVERAGE, pair, tmp_path / "out", fresh=True)
    assert files(tmp_path / "precious") == {"thesis.tex": b"years of work"}


class _Meanwhile:
    """Progress that does something once, in the middle of a run."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what: Callable[[], object] | None = what

    def begin(self, plan: Plan) -> None:
        pass

    def finished(self, _tensor: TensorPlan, _resumed: bool) -> None:
        if self.what is not None:
            self.what()
            self.what = None

    def stopping(self) -> None:
        pass


def test_what_appears_at_the_output_during_the_run_is_kept(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Without `overwrite` nothing is replaced, whenever it came; the work is kept and can be finished."""
    out = tmp_path / "out"

    def appear() -> None:
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")

    with pytest.raises(OutputError, match="exists already"):
        surgery.apply(AVERAGE, pair, out, progress=_Meanwhile(appear))
    assert files(out) == {"thesis.tex": b"years of work"}
    shutil.rmtree(out)
    assert surgery.apply(AVERAGE, pair, out).resumed == len(read(pair[1]))


def test_what_another_run_finished_meanwhile_is_noticed_before_the_work(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look at the output and the lock: nothing is computed, and nothing is left."""
    out, real = tmp_path / "out", Journal.__init__

    def late(self: Journal, path: Path) -> None:
        monkeypatch.setattr(Journal, "__init__", real)
        surgery.apply(AVERAGE, pair, out)
        real(self, path)

    monkeypatch.setattr(Journal, "__init__", late)
    with pytest.raises(OutputError, match="exists already"):
        surgery.apply(AVERAGE, pair, out)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_an_input_that_is_rewritten_during_the_run_is_noticed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The output of a mixture of old and new bytes does not appear."""
    with pytest.raises(CheckpointError, match="was modified since its header was read"):
        surgery.apply(AVERAGE, pair, tmp_path / "out", progress=_Meanwhile((pair[1] / "model.safetensors").touch))
    assert not (tmp_path / "out").exists()


def test_leftovers_of_another_model_with_the_same_times_are_not_mixed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Names, sizes and times alike (archives and `cp -p` keep them): the path and the inode tell them apart."""

    def fail() -> None:
        raise OSError(28, "No space left on device")

    other = tmp_path / "models" / "other"
    shutil.copytree(pair[1], other)
    for model in (*pair, other):
        os.utime(model / "model.safetensors", (0, 0))
    with pytest.raises(OSError, match="No space"):
        surgery.apply(AVERAGE, pair, tmp_path / "out", progress=_Meanwhile(fail))
    with pytest.raises(OutputError, match="inputs that have changed since"):
        surgery.apply(AVERAGE, [pair[0], other], tmp_path / "out")


def test_a_mount_point_is_refused_before_any_work(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename cannot replace it."""
    (tmp_path / "mnt").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "mnt")
    with pytest.raises(OutputError, match="mount point"):
        surgery.apply(AVERAGE, pair, tmp_path / "mnt")


@pytest.mark.parametrize("name", ["x" * 300, "nul\0"])
def test_impossible_names_are_told(pair: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """Too long, or with a character that no file system takes."""
    with pytest.raises(OutputError, match="cannot write"):
        surgery.apply(AVERAGE, pair, tmp_path / name)


def test_a_path_that_is_not_utf8_is_no_obstacle(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Models may lie anywhere; manifest and card stay valid."""
    strange = pair[0].rename(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xff"))
    out = surgery.apply(AVERAGE, [strange, pair[1]], tmp_path / "out").out
    assert surgery.verify(out).tensors == len(read(pair[1]))


def test_descriptors_are_reserved_beforehand(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit is raised to what the plan needs; a hard limit that is too low is told with both numbers."""
    made = surgery.plan(AVERAGE, pair)
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    reserve_descriptors(made.inputs.values(), len(made.files))
    assert asked == [(3 + 64, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8, 16))
    with pytest.raises(PlanError, match="67 files are open at a time, the limit is 16"):
        reserve_descriptors(made.inputs.values(), len(made.files))
