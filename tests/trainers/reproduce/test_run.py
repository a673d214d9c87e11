"""Stages in order: what is finished stays, what fails leaves the others alone, kills lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.reproduce.scripted import WAITING, Said, run, scripted, words
from trainers.errors import ConfigError, RunError
from trainers.reproduce import run as running
from trainers.reproduce import seed
from trainers.reproduce.records import FILE, LOCK, Record, Records, read_records
from trainers.reproduce.standing import Standing, standings

FOUR = (("one", "", ()), ("two", "", ("one",)), ("three", "", ("two",)), ("four", "", ()))
AFTER = (("one", "two"), ("two", "three"))


@pytest.fixture(autouse=True)
def _script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are the script."""
    monkeypatch.setattr(seed, "python_words", words)


def ran(out: Path, seed: int = 0) -> list[str]:
    """The stages whose commands ran, in order."""
    path = out / f"seed-{seed}" / "runs"
    return path.read_text().split() if path.exists() else []


def remove(out: Path, name: str) -> None:
    """What a stage has made."""
    shutil.rmtree(out / "seed-0" / name)


def states(found: Sequence[Standing]) -> dict[str, str]:
    """By the stages' names."""
    return {standing.stage.name: standing.state for standing in found}


def test_in_order_and_only_once(tmp_path: Path) -> None:
    """Each runs once for each seed, in its directory; a second run does nothing."""
    made = scripted(("one", "", ()), ("two", "", ("one",)))
    for _ in range(2):
        found = run(made, tmp_path, seeds=[0, 1])
        assert {standing.state for standing in found} == {"finished"}
        assert ran(tmp_path) == ran(tmp_path, 1) == ["one", "two"]
    assert (tmp_path / "seed-1" / "two" / "made").read_text() == "diff one x x --out two"
    assert (tmp_path / "seed-0" / "logs" / "one.txt").read_text() == "a result\n"
    assert (tmp_path / "seed-0" / "logs" / "one.log").read_text() == "at work on one\n"
    assert (tmp_path / "pipeline.yaml").read_text() == made.text


def test_what_is_gone_is_made_again(tmp_path: Path) -> None:
    """A finished stage whose result was deleted runs again, and so does what was made of it, directly or not."""
    made = scripted(*FOUR)
    run(made, tmp_path)
    remove(tmp_path, "one")
    assert states(standings(made, tmp_path, [0])) == dict.fromkeys(("two", "three", "four"), "finished") | {
        "one": "open"
    }
    told = Said()
    run(made, tmp_path, watch=told)
    assert ran(tmp_path) == ["one", "two", "three", "four", "one", "two", "three"]
    assert told.notes == [f"`{b}` was made of an earlier run of `{a}`; it is made anew" for a, b in AFTER]
    run(made, tmp_path)
    assert len(ran(tmp_path)) == 7


def test_what_was_made_of_it_waits(tmp_path: Path) -> None:
    """While it is made again alone, or fails, what was made of the old one is open, and stale."""
    made = scripted(*FOUR)
    run(made, tmp_path)
    remove(tmp_path, "one")
    found = run(made, tmp_path, only=["one"])
    assert states(found) == {"one": "finished", "two": "open", "three": "waiting", "four": "finished"}
    assert [each.stage.name for each in found if each.stale] == ["two", "three"]
    assert (tmp_path / "seed-0" / "two" / "made").exists()
    assert states(run(made, tmp_path, only=["three"]))["three"] == "waiting"
    assert states(run(made, tmp_path, only=["two"]))["three"] == "open"
    assert set(states(run(made, tmp_path)).values()) == {"finished"}
    assert ran(tmp_path)[4:] == ["one", "two", "three"]


def test_unfinished_work_on_what_is_gone(tmp_path: Path) -> None:
    """A stage that was interrupted does not go on from what it made of an earlier run."""
    made = scripted(("one", "", ()), ("two", "fails", ("one",)))
    run(made, tmp_path)
    left = tmp_path / "seed-0" / "two"
    left.mkdir()
    (left / "half").touch()
    run(made, tmp_path)
    assert (left / "half").exists()  # of the same run
    remove(tmp_path, "one")
    run(made, tmp_path)
    assert not left.exists()


def test_records_of_before_there_were_runs(tmp_path: Path) -> None:
    """They count, until something that was read runs again."""
    made = scripted(*FOUR)
    run(made, tmp_path)
    path = tmp_path / "seed-0" / FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    new = ("run", "read", "versions")
    old = [{name: value for name, value in row.items() if name not in new} for row in rows]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in old))
    run(made, tmp_path)
    assert len(ran(tmp_path)) == 4
    remove(tmp_path, "two")
    run(made, tmp_path)
    assert ran(tmp_path)[4:] == ["two", "three"]


def test_other_versions_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that were made under other versions stay, and a note says so."""
    made = scripted(("one", "", ()), ("two", "", ()))
    monkeypatch.setattr(seed, "versions", lambda: {"surgery": "0.0.1"})
    run(made, tmp_path)
    told = Said()
    monkeypatch.setattr("trainers.reproduce.versions.versions", lambda: {"surgery": "0.0.2", "torch": "9"})
    run(made, tmp_path, watch=told)
    (note,) = told.notes
    assert note.startswith("seed 0: `one`, `two` finished under surgery 0.0.1 (now 0.0.2), and stay as they are; ")
    assert len(ran(tmp_path)) == 2


class KilledError(BaseException):
    """In place of a kill."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(6))
def test_killed_while_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, after: bool) -> None:
    """A kill before or after any mark or deletion of `--fresh` leaves nothing stale that counts as finished."""
    run(scripted(*FOUR), tmp_path)
    for name in ("one", "two", "three"):
        (tmp_path / "seed-0" / name / "old").touch()
    changed = scripted(("one", "nothing", ()), *FOUR[1:])
    steps = []

    def killed(action: Any) -> Any:
        def act(*given: Any) -> None:
            steps.append(given)
            if len(steps) == step + 1 and not after:
                raise KilledError
            action(*given)
            if len(steps) == step + 1:
                raise KilledError

        return act

    with monkeypatch.context() as patched:
        patched.setattr(running, "delete", killed(seed.delete))
        patched.setattr(Records, "put", killed(Records.put))
        with pytest.raises(KilledError):
            run(changed, tmp_path, fresh=True)
    found = states(standings(changed, tmp_path, [0]))
    assert found["four"] == "finished"
    assert "finished" not in (found["one"], found["two"], found["three"])
    try:
        found = states(run(changed, tmp_path))
    except RunError as error:
        assert "`one` have changed" in str(error)  # noqa: PT017
        found = states(run(changed, tmp_path, fresh=True))
    assert set(found.values()) == {"finished"}
    assert ran(tmp_path)[4:] == ["one", "two", "three"]
    assert not list((tmp_path / "seed-0").glob("*/old"))


def test_a_failure_leaves_the_others(tmp_path: Path) -> None:
    """What does not need it runs; its message is kept; once it is mended the rest goes on."""
    made = scripted(("one", "fails", ()), ("two", "", ("one",)), ("three", "", ()), ("four", "", ("two",)))
    told = Said()
    found = run(made, tmp_path, watch=told)
    assert states(found) == {"one": "failed", "two": "waiting", "three": "finished", "four": "waiting"}
    assert found[0].message == "nothing to learn from; give data\nand more of it"
    assert told.ends[2:] == [("two", "waiting", "waits for `one`"), ("four", "waiting", "waits for `two`")]
    assert "at work on three" in told.lines
    (tmp_path / "seed-0" / "mended").touch()
    assert set(states(run(made, tmp_path)).values()) == {"finished"}
    assert ran(tmp_path) == ["one", "three", "one", "two", "four"]


def test_a_killed_command(tmp_path: Path) -> None:
    """It has failed, for the reason that a signal gives; run again it goes on."""
    made = scripted(("one", "dies", ()), ("two", "", ()))
    found = run(made, tmp_path)
    assert states(found) == {"one": "failed", "two": "finished"}
    assert found[0].message.startswith("ended by SIGKILL, perhaps for lack of memory")
    assert set(states(run(made, tmp_path)).values()) == {"finished"}


def test_a_result_that_is_not_there(tmp_path: Path) -> None:
    """A command that ends well without what the stage makes has failed."""
    (found,) = run(scripted(("one", "forgets", ())), tmp_path)
    assert found.state == "failed"
    assert "`one` is not there" in found.message


def test_stages_one_by_one(tmp_path: Path) -> None:
    """`only` runs what is named; what that needs must be finished; an unknown name gets the nearest."""
    made = scripted(("one", "", ()), ("two", "", ("one",)), ("three", "", ()))
    assert states(run(made, tmp_path, only=["two"])) == {"one": "open", "two": "waiting", "three": "open"}
    run(made, tmp_path, only=["one"])
    assert states(run(made, tmp_path, only=["two"])) == {"one": "finished", "two": "finished", "three": "open"}
    with pytest.raises(ConfigError, match="--only thre: no such stage; did you mean `three`"):
        run(made, tmp_path, only=["thre"])


def test_changed_commands(tmp_path: Path) -> None:
    """They are refused before anything runs; with `fresh`, they and all after them are made anew, and nothing else."""
    stages = (("one", "", ()), ("two", "", ("one",)), ("three", "", ("two",)))
    run(scripted(*stages), tmp_path)
    changed = scripted(stages[0], ("two", "forgets", ("one",)), stages[2])
    with pytest.raises(RunError, match=r"the commands of `two` have changed; .*`two`, `three` made"):
        run(changed, tmp_path)
    assert (tmp_path / "seed-0" / "three" / "made").exists()
    assert states(run(changed, tmp_path, fresh=True)) == {"one": "finished", "two": "failed", "three": "waiting"}
    assert not (tmp_path / "seed-0" / "three").exists()
    assert ran(tmp_path) == ["one", "two", "three", "two"]


def test_something_else_in_the_way(tmp_path: Path) -> None:
    """What no stage has made is not written over, and others go on; once it is gone, so does that stage."""
    (tmp_path / "seed-0" / "one").mkdir(parents=True)
    made = scripted(("one", "", ()), ("two", "", ("one",)), ("three", "", ()))
    for _ in range(2):
        found = run(made, tmp_path)
        assert states(found) == {"one": "failed", "two": "waiting", "three": "finished"}
        assert "the stage `one` that makes it has never run" in found[0].message
        assert (tmp_path / "seed-0" / "one").exists()
    (tmp_path / "seed-0" / "one").rmdir()
    assert set(states(run(made, tmp_path)).values()) == {"finished"}


def test_what_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage has failed, and deletes it the next time."""
    made = scripted(*FOUR)
    run(made, tmp_path)
    remove(tmp_path, "one")

    def refuse(path: Path) -> None:
        raise RunError(f"cannot delete `{path}`")

    with monkeypatch.context() as patched:
        patched.setattr(seed, "delete", refuse)
        found = states(run(made, tmp_path))
    assert found == {"one": "finished", "two": "failed", "three": "waiting", "four": "finished"}
    assert set(states(run(made, tmp_path)).values()) == {"finished"}
    assert ran(tmp_path)[4:] == ["one", "two", "three"]


def test_leftovers_of_a_kill(tmp_path: Path) -> None:
    """A command that would refuse its own finished output finds it gone, if it was killed before that was known."""
    made = scripted(("one", "", ()))
    run(made, tmp_path)
    row = read_records(tmp_path / "seed-0")["one"]
    stage = made.stages[0].model_copy(update={"run": ("apply", "r", "m", "--out", "one")})
    seed.make_way(stage, tmp_path / "seed-0" / "one", row, {})
    assert not (tmp_path / "seed-0" / "one").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_handed_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The command gets the signal once, ends, and the run after it; the next run goes on there."""
    process = start(tmp_path)
    process.send_signal(number)
    assert process.wait(30) == code
    assert read_records(tmp_path / "seed-0")["two"].state == "interrupted"
    if number == signal.SIGINT:
        assert (tmp_path / "seed-0" / "interrupts").read_text() == "x"
    assert to_the_end(tmp_path) == ["one", "two", "two", "three"]


def test_killed_itself(tmp_path: Path) -> None:
    """The command that is left ends as soon as it speaks; the next run waits for that, and goes on."""
    process = start(tmp_path)
    process.kill()
    process.wait()
    assert read_records(tmp_path / "seed-0")["two"].state == "begun"
    notes: list[str] = []
    Records(tmp_path / "seed-0", notes.append).close()
    (note,) = notes
    assert note.startswith("waiting for the command that an earlier run, which was killed, has left at work in ")
    assert to_the_end(tmp_path) == ["one", "two", "two", "three"]


def test_two_at_once(tmp_path: Path) -> None:
    """The second is told to wait, and who is at work."""
    process = start(tmp_path)
    made = WAITING["one at a time"]
    with pytest.raises(RunError, match=rf"another `surgery reproduce` \(process {process.pid}\) is at work"):
        run(made, tmp_path)
    process.kill()
    process.wait()


def start(out: Path, kind: str = "one at a time") -> subprocess.Popen[bytes]:
    """A run in a process of its own, which has come to the stages that wait."""
    process = subprocess.Popen([sys.executable, "-m", "tests.trainers.reproduce.scripted", str(out), kind])
    logs = [out / "seed-0" / "logs" / f"{name}.log" for name in ("two", "one")[: WAITING[kind].jobs]]
    for _ in range(600):
        if all(log.exists() and "still at work" in log.read_text() for log in logs):
            return process
        time.sleep(0.05)
    raise AssertionError("the run did not come so far")


def to_the_end(out: Path, kind: str = "one at a time") -> list[str]:
    """The same again, which finishes everything; gives the commands of both."""
    command = [sys.executable, "-m", "tests.trainers.reproduce.scripted", str(out), kind]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    return ran(out)


def test_side_by_side(tmp_path: Path) -> None:
    """As many as the pipeline allows, each as soon as what it needs is there, in whatever order that is."""
    made = scripted(
        ("one", "", ()), ("two", "meets three", ("one",)), ("three", "meets two", ("one",)), ("four", "", ("three",)),
        jobs=2,
    )  # fmt: skip
    told = Said()
    assert set(states(run(made, tmp_path, watch=told)).values()) == {"finished"}
    assert ran(tmp_path)[0] == "one"
    assert {name for name, _, _ in told.ends} == {"one", "two", "three", "four"}
    assert len(ran(tmp_path)) == 4


def test_a_failure_beside_another(tmp_path: Path) -> None:
    """What is at work beside a stage that fails goes on to its end, and so does what needs that one."""
    made = scripted(("one", "fails", ()), ("two", "meets one", ()), ("three", "", ("two",)), jobs=2)
    assert states(run(made, tmp_path)) == {"one": "failed", "two": "finished", "three": "finished"}


def test_records_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full, what is at work beside is ended, and the run with it."""
    made = scripted(("one", "meets two", ()), ("two", "waits", ()), jobs=2)
    put = Records.put

    def full(records: Records, name: str, record: Record) -> None:
        if record.state == "finished":
            raise RunError("cannot write")
        put(records, name, record)

    with monkeypatch.context() as patched:
        patched.setattr(Records, "put", full)
        with pytest.raises(RunError, match="cannot write"):
            run(made, tmp_path)
    assert states(standings(made, tmp_path, [0])) == {"one": "interrupted", "two": "interrupted"}
    assert set(states(run(made, tmp_path)).values()) == {"finished"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_go_to_all(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Each command at work gets the signal once, and the next run goes on with all of them."""
    process = start(tmp_path, "side by side")
    process.send_signal(number)
    assert process.wait(30) == code
    rows = read_records(tmp_path / "seed-0")
    assert {name: row.state for name, row in rows.items()} == dict.fromkeys(("one", "two"), "interrupted")
    if number == signal.SIGINT:
        assert (tmp_path / "seed-0" / "interrupts").read_text() == "xx"
    assert sorted(to_the_end(tmp_path, "side by side")) == ["one", "one", "three", "two", "two"]


def test_damaged_records(tmp_path: Path) -> None:
    """A line that a kill has cut short is as if it had not been written, and harms no later one."""
    made = scripted(("one", "", ()), ("two", "", ()))
    run(made, tmp_path)
    path = tmp_path / "seed-0" / FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["[]", "{", *lines[:3]]) + "\n" + lines[3][:20])
    assert states(standings(made, tmp_path, [0])) == {"one": "finished", "two": "interrupted"}
    run(made, tmp_path)
    assert states(standings(made, tmp_path, [0])) == {"one": "finished", "two": "finished"}
    assert json.loads(path.read_text().splitlines()[-1])["stage"] == "two"


def test_records_that_are_none(tmp_path: Path) -> None:
    """A file of other lines, or a directory in its place, is said; the one line that a kill has cut short is not."""
    path = tmp_path / FILE
    path.write_bytes(b'{"stage": "on')
    assert read_records(tmp_path) == {}
    path.write_bytes(b"\x00\x01 garbage\n{}\n")
    with pytest.raises(RunError, match=r"no line of `.*stages.jsonl` can be read; put back what was there, or remove"):
        read_records(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match=r"cannot read `.*stages.jsonl`: Is a directory; move it away"):
        read_records(tmp_path)


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    """At the end, and where something is raised."""
    with Records(tmp_path), pytest.raises(RunError, match=f"process {os.getpid()}"):
        Records(tmp_path)
    with Records(tmp_path) as records:
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
        assert records.rows == {}
