"""The directory of a run: whose it is, what may be touched, and where a killed run goes on."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from trainers.directory import COMPLETE, RESUME, RUN, RunDirectory
from trainers.errors import RunError

IDENTITY: dict[str, Any] = {
    "trainer": "sft",
    "config": {"model": "m", "out": "o", "seed": 0, "report_to": [], "optimizer": {"learning_rate": 1.0}},
    "parent": "p",
    "chat_template": None,
    "data": {"seed": 0, "digest": "d", "held_out": {"id": "h"}},
    "versions": {"torch": "2"},
    "processes": 1,
}


def begin(out: Path, resume: bool = False, overwrite: bool = False, **changes: Any) -> RunDirectory:
    """A run's directory, closed again; `changes` replace parts of what makes the run."""
    directory = RunDirectory(out, {**IDENTITY, **changes}, resume, overwrite)
    directory.close()
    return directory


def config(**changes: Any) -> Mapping[str, Any]:
    """The configuration of `IDENTITY` but for some keys."""
    return {**IDENTITY["config"], **changes}


def state(out: Path, step: int, complete: bool = True) -> Path:
    """A state of training."""
    directory = out / RESUME / f"checkpoint-{step}"
    directory.mkdir(parents=True)
    (directory / "optimizer.pt").write_bytes(b"x")
    if complete:
        (directory / COMPLETE).write_text('{"optimizer.pt": 1}')
    return directory


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_begins_where_nothing_is(tmp_path: Path, resume: bool, there: bool) -> None:
    """A run begins in a directory that does not exist, with all above it, or that is empty, and says what it is."""
    out = tmp_path / "runs" / "out"
    if there:
        out.mkdir(parents=True)
    directory = begin(out, resume)
    assert json.loads((out / RUN).read_bytes()) == IDENTITY
    assert [path.name for path in out.iterdir()] == [RUN]
    assert directory.latest_state() is None
    assert not directory.finished


def test_begins_where_a_run_was_killed_before_it_was_written_down(tmp_path: Path) -> None:
    """An empty `run.json` alone is as good as nothing."""
    (tmp_path / RUN).touch()
    begin(tmp_path)
    assert json.loads((tmp_path / RUN).read_bytes()) == IDENTITY


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["file", "files", "foreign run.json", "list", "broken link"])
def test_leaves_what_is_no_run(tmp_path: Path, what: str, resume: bool, overwrite: bool) -> None:
    """What no run has written is never touched, not even by `--overwrite`, and the message says what to do."""
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    elif what == "broken link":
        out.symlink_to("nowhere")
    else:
        out.mkdir()
        content = {"files": "mine", "foreign run.json": '{"laps": 3}', "list": "[]"}[what]
        (out / ("notes" if what == "files" else RUN)).write_text(content)
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(RunError, match=r"exists and holds no run of `surgery train`; choose another `--out`"):
        begin(out, resume, overwrite)
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before
    assert os.path.lexists(out)


@pytest.mark.parametrize("overwrite", [False, True])
def test_leaves_what_is_damaged(tmp_path: Path, overwrite: bool) -> None:
    """A `run.json` that is no JSON may be anybody's."""
    (tmp_path / RUN).write_text('{"trainer": "sf')
    with pytest.raises(RunError, match=r"run\.json` is damaged"):
        begin(tmp_path, overwrite=overwrite)
    assert (tmp_path / RUN).is_file()


@pytest.mark.parametrize(("done", "message"), [(False, r"an interrupted run; go on with it by `--resume`"),
                                               (True, r"a finished run; choose another")])  # fmt: skip
def test_asks_before_it_begins_anew(tmp_path: Path, done: bool, message: str) -> None:
    """Without `--resume` or `--overwrite` a directory with a run stays as it is."""
    directory = begin(tmp_path)
    state(tmp_path, 3)
    if done:
        directory.finish({"best": 3})
    with pytest.raises(RunError, match=message):
        begin(tmp_path)
    assert (tmp_path / RUN).is_file()


def test_resumes(tmp_path: Path) -> None:
    """A run that goes on finds its newest whole state; one that is finished is said to be."""
    directory = begin(tmp_path)
    for step in (9, 10, 100):
        state(tmp_path, step, complete=step != 100)
    (tmp_path / RESUME / "checkpoint-late").mkdir()
    (tmp_path / RESUME / "checkpoint-late" / COMPLETE).touch()
    assert begin(tmp_path, resume=True).latest_state() == 10
    directory.finish({"best": 3})
    assert not (tmp_path / RESUME).exists()
    state(tmp_path, 9)
    assert begin(tmp_path, resume=True).finished
    assert not (tmp_path / RESUME).exists(), "a kill between report and clean-up leaves nothing for good"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config": config(seed=1)}, "`seed`"),
        ({"config": config(seed=1), "data": {"seed": 1, "digest": "e"}}, "`seed`"),
        ({"config": config(optimizer={"learning_rate": 2.0})}, "`optimizer.learning_rate`"),
        ({"config": config(seed=1, model="n", optimizer={"learning_rate": 2.0})}, "`optimizer.learning_rate`, `seed`"),
        ({"config": config(out_of_date=1)}, "`out_of_date`"),
        ({"parent": "q", "config": config(model="n")}, "the files of `model`"),
        ({"data": {**IDENTITY["data"], "digest": "e"}}, "the data"),
        ({"data": {**IDENTITY["data"], "held_out": {"id": "i"}}}, "the data"),
        ({"chat_template": "c"}, "the file `chat_template`"),
        ({"versions": {"torch": "3"}}, "`versions.torch`"),
        ({"processes": 2}, "`processes`"),
        ({"trainer": "ppo"}, "`trainer`"),
    ],
)
def test_resumes_the_same_run_only(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    """What makes another run is named, as a whole and nothing else, whatever follows from it."""
    begin(tmp_path)
    state(tmp_path, 3)
    with pytest.raises(RunError) as caught:
        begin(tmp_path, resume=True, **changes)
    assert f"was begun with others of these: {named}; going on" in str(caught.value)
    begin(tmp_path, resume=True)  # the lock is free again


@pytest.mark.parametrize("resume", [False, True])
def test_what_has_come_to_nothing_is_begun_anew(tmp_path: Path, resume: bool) -> None:
    """A run that failed before its first checkpoint keeps nobody from another try, by another configuration even."""
    begin(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 0}\n')
    begin(tmp_path, resume=resume, config=config(seed=1))
    assert json.loads((tmp_path / RUN).read_bytes())["config"]["seed"] == 1
    assert not (tmp_path / "log.jsonl").exists()


def test_resumes_elsewhere(tmp_path: Path) -> None:
    """Where the run and its model lie and who hears of it do not make another run."""
    begin(tmp_path)
    state(tmp_path, 3)
    begin(tmp_path, resume=True, config=config(out="elsewhere", model="moved", report_to=["tensorboard"]))


def test_overwrites_a_run(tmp_path: Path) -> None:
    """All that lay in the run's directory is gone, links and not what they lead to, and a new run begins."""
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "mine").touch()
    directory = begin(out)
    directory.checkpoint(3).mkdir()
    directory.link("final", 3)
    (out / "checkpoint-4").symlink_to(other)
    directory.finish({})
    state(out, 3)
    assert not begin(out, overwrite=True, config=config(seed=5)).finished
    assert [path.name for path in out.iterdir()] == [RUN]
    assert json.loads((out / RUN).read_bytes())["config"]["seed"] == 5
    assert (other / "mine").is_file()


def test_overwrites_through_a_link(tmp_path: Path) -> None:
    """A directory that OUT links to is emptied and used."""
    (tmp_path / "out").symlink_to("place")
    (tmp_path / "place").mkdir()
    begin(tmp_path / "out").finish({})
    begin(tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "place").iterdir()] == [RUN]


@pytest.mark.parametrize("kill", range(1, 5))
def test_overwriting_may_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int) -> None:
    """Whenever deleting an older run stops, the rest is still a run's directory, with no report and no state in it."""
    directory = begin(tmp_path)
    (tmp_path / "a-note").touch()
    directory.checkpoint(3).mkdir()
    directory.finish({})
    state(tmp_path, 3)
    calls = itertools.count(1)

    def deadly(real: Any) -> Any:
        def wrapped(path: Path) -> None:
            if next(calls) == kill:
                raise KeyboardInterrupt
            real(path)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
        patch.setattr(Path, "unlink", deadly(Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path, overwrite=True)
    if not ((tmp_path / "a-note").exists() and (tmp_path / "checkpoint-3").exists()) or kill > 2:
        assert not (tmp_path / "report.json").exists()
        assert not (tmp_path / RESUME).exists()
    assert begin(tmp_path, overwrite=True).latest_state() is None


@pytest.mark.parametrize("overwrite", [False, True])
def test_is_held_by_one_process(tmp_path: Path, overwrite: bool) -> None:
    """Whoever comes second is told, until the first is done."""
    with RunDirectory(tmp_path, IDENTITY, False, False):
        for resume in (False, True):
            with pytest.raises(RunError, match="another process is training into"):
                begin(tmp_path, resume, overwrite)
    begin(tmp_path, resume=True)


def test_two_that_begin_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that find nothing there, the second neither holds the directory nor changes what the first wrote."""
    import trainers.directory as module

    looked = module._check_ours
    with ExitStack() as stack:

        def look(path: Path) -> None:
            looked(path)
            monkeypatch.setattr(module, "_check_ours", looked)
            stack.enter_context(RunDirectory(path, {**IDENTITY, "parent": "first"}, False, False))

        monkeypatch.setattr(module, "_check_ours", look)
        with pytest.raises(RunError, match="another process is training into"):
            begin(tmp_path)
    assert json.loads((tmp_path / RUN).read_bytes())["parent"] == "first"


def test_sealing_keeps_one_state(tmp_path: Path) -> None:
    """A state counts once it is sealed; then no other is left."""
    directory = begin(tmp_path)
    older = state(tmp_path, 2)
    newer = state(tmp_path, 4, complete=False)
    assert directory.latest_state() == 2
    directory.seal(4)
    assert directory.latest_state() == 4
    assert (newer.exists(), older.exists()) == (True, False)


def test_links(tmp_path: Path) -> None:
    """A link leads to a checkpoint beside it, wherever the directory is moved, and is replaced at once."""
    directory = begin(tmp_path / "out")
    for step in (1, 2):
        directory.checkpoint(step).mkdir()
        directory.link("final", step)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert (moved / "final").readlink() == Path("checkpoint-2")
    assert (moved / "final").is_dir()


def test_steps(tmp_path: Path) -> None:
    """Checkpoints are known by a file in them; what else lies about is not."""
    directory = begin(tmp_path)
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-x", ".checkpoint-12.partial", "checkpoint-3"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-3":
            (tmp_path / name / "training.json").touch()
    assert sorted(directory.steps("training.json")) == [2, 10]
    directory.drop(2)
    directory.drop(2)
    assert sorted(directory.steps("training.json")) == [10]


def test_unwritable(tmp_path: Path) -> None:
    """A directory that cannot be made is one message."""
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write to `.*file.*`: Not a directory; make room or choose another"):
        begin(tmp_path / "file" / "out")


def full(*_: Any, **__: Any) -> Any:
    """What writing raises on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `run.json` does not fit, there is none, and the next attempt begins."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(RunError, match="No space left on device; make room"):
            begin(tmp_path)
    assert not list(tmp_path.iterdir())
    begin(tmp_path)


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose report does not fit is not finished."""
    directory = begin(tmp_path / "out")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="No space left"):
        directory.finish({})
    assert not directory.finished
