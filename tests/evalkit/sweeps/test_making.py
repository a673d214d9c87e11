"""Room on the disk, batches, and the process that makes the next one."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import evalkit.sweeps.making
import surgery
from evalkit.errors import EngineError
from evalkit.sweeps.maker import Batch, Maker, Making
from evalkit.sweeps.making import Room
from evalkit.sweeps.sweep import plan_sweep
from surgery import jobs
from surgery.errors import OutputError, PlanError, SurgeryError
from tests.evalkit.sweeps.conftest import SPEC, TASK, Make, Pair, Sweeping, Told, nearness
from tests.evalkit.sweeps.test_run import kept
from tests.pairs import files

pytestmark = pytest.mark.usefixtures("without_figures")
ENDING = 30.0  # seconds after which a process is taken to stay


def room(sizes: list[int], tmp_path: Path, keep: Any = "none", disk: int | None = None, taken: int = 0) -> Room:
    """For works of these sizes."""
    shelf: Any = SimpleNamespace(root=tmp_path, taken=lambda _: taken)
    return Room(works(sizes), shelf, keep, Making(disk=disk))


def works(sizes: list[int]) -> list[Any]:
    """Works of which only the sizes matter."""
    return [SimpleNamespace(nbytes=size, name=str(i)) for i, size in enumerate(sizes)]


def divided(sizes: list[int], made: Room) -> list[list[int]]:
    """The sizes in each batch."""
    return [[work.nbytes for work in batch] for batch in made.divide(works(sizes))]


def test_all_that_fits_is_made_at_once(tmp_path: Path) -> None:
    """One pass over the tensors is the cheapest; of nothing there is no batch."""
    sizes = [10, 20, 30]
    assert divided(sizes, room(sizes, tmp_path, disk=60)) == [sizes]
    assert room(sizes, tmp_path, disk=60).divide([]) == []


def test_batches_leave_room_for_the_next(tmp_path: Path) -> None:
    """What does not fit at once is divided so that two batches do; with the least room there is one in each."""
    sizes = [10] * 6
    assert divided(sizes, room(sizes, tmp_path, disk=59)) == [[10, 10], [10, 10], [10, 10]]
    assert divided(sizes, room(sizes, tmp_path, disk=40)) == [[10, 10], [10, 10], [10, 10]]
    assert divided(sizes, room(sizes, tmp_path, disk=10)) == [[10]] * 6
    assert divided([10, 30, 10, 10], room([10, 30, 10, 10], tmp_path, disk=40)) == [[10], [30], [10, 10]]


def test_the_best_so_far_takes_room(tmp_path: Path) -> None:
    """Where it is kept the others have that much less; two that do not fit together are not made together."""
    sizes = [10] * 4
    assert divided(sizes, room(sizes, tmp_path, "best", disk=40)) == [[10]] * 4
    assert divided(sizes, room(sizes, tmp_path, "best", disk=50)) == [sizes]
    assert room(sizes, tmp_path, "best", disk=30).holds(works([10, 10]))
    assert not room(sizes, tmp_path, "best", disk=29).holds(works([10, 10]))


@pytest.mark.parametrize(
    ("sizes", "keep", "disk", "message"),
    [
        ([10, 41], "none", 40, r"a variant takes 41 B, and 40 B of the disk of `.*` may be taken; make room, choose"),
        ([20, 20], "best", 39, r"a variant takes 20 B beside the best so far, and 39 B of the disk"),
        (
            [2**61, 2**61],
            "all",
            None,
            r"all variants that are to be made take .*, and the disk of `.*` has .* left; keep fewer \(`--keep best`",
        ),
        ([2**61], "pareto", None, r"a variant takes .*, and .* of the disk of `.*` may be taken"),
    ],
)
def test_no_room(tmp_path: Path, sizes: list[int], keep: str, disk: int | None, message: str) -> None:
    """Said before anything is made, with what to do."""
    with pytest.raises(OutputError, match=message):
        room(sizes, tmp_path, keep, disk)


def test_what_lies_there_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default half of what would be free without the leftovers of an interrupted run."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=60))
    assert divided([10] * 5, room([10] * 5, tmp_path, taken=40)) == [[10] * 5]
    assert divided([10] * 6, room([10] * 6, tmp_path, taken=40)) == [[10, 10]] * 3
    assert divided([40] * 2, room([40] * 2, tmp_path, "best", taken=30)) == [[40], [40]]
    with pytest.raises(OutputError, match=r"a variant takes 50 B beside the best so far, and 90 B"):
        room([50], tmp_path, "best", taken=30)


THREE = {
    **SPEC,
    "averages": [0.25, 0.5],
    "variants": [{"recipe": "values-only"}],
}  # which make the same bytes in any batch


def test_two_batches_in_flight(sweeping: Sweeping, engine: Make, tmp_path: Path, pair: Pair) -> None:
    """With little room variants are made in other processes while others are scored, to the same result.

    Never more bytes lie there than are allowed.
    """
    engine()
    whole = sweeping(THREE, "whole")
    nbytes = (pair["sft"] / "model.safetensors").stat().st_size
    disk, seen, begun = 3 * nbytes, [], []

    def skill(directory: Path, large: bool) -> float:
        lying = list((tmp_path / "out" / "checkpoints").rglob("*.safetensors"))
        seen.append(sum(path.stat().st_size for path in lying))
        return nearness(directory, large)

    engine(skill)
    told = Told()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evalkit.sweeps.making, "Maker", lambda *given: begun.append(len(given[0].variants)) or Maker(*given)
        )
        result = sweeping(THREE, disk=disk, progress=told)
    assert begun == [1, 1]
    assert told.said[3:] == [
        "making 1",
        "values-only",
        "making 1",
        "wise-ft alpha=0.25",
        "making 1",
        "wise-ft alpha=0.5",
    ]
    assert [row.scores for row in result.rows] == [row.scores for row in whole.rows]
    assert [row.digest for row in result.rows] == [row.digest for row in whole.rows]
    assert 0 < max(seen) <= disk
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


def test_with_the_least_room_nothing_is_made_ahead(
    sweeping: Sweeping, engine: Make, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variant is made once the one before is scored and gone."""
    nbytes = (pair["sft"] / "model.safetensors").stat().st_size
    engine()
    monkeypatch.setattr(evalkit.sweeps.making, "Maker", None)
    assert len(sweeping(THREE, disk=int(2.5 * nbytes)).rows) == 5
    with pytest.raises(OutputError, match="beside the best so far"):
        sweeping(THREE, "other", disk=int(1.5 * nbytes))
    assert len(sweeping(THREE, "other", disk=int(1.5 * nbytes), keep="none").rows) == 5


HEADS: dict[str, Any] = {
    **SPEC,
    "averages": [],
    "variants": [{"recipe": "restore-top-20pct", "grid": {"head": [1, 2, 3, 4]}}],
}  # of which each alone would be given other bits


def heads(*values: int) -> dict[str, Any]:
    """`HEADS` with these values."""
    return {**HEADS, "variants": [{"recipe": "restore-top-20pct", "grid": {"head": [*values]}}]}


@pytest.fixture(scope="module")
def made_at_once(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of all `HEADS`, made in one pass."""
    place = tmp_path_factory.mktemp("at-once")
    batch = [
        surgery.Variant("restore-top-20pct", place / f"restore-top-20pct-head-{head}", {"head": head})
        for head in (1, 2, 3, 4)
    ]
    surgery.apply_all(batch, pair)
    return weights(place)


def weights(place: Path) -> dict[str, bytes]:
    """The tensor files of all checkpoints there."""
    return {name: content for name, content in files(place).items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("copies", [None, 2, 1])
def test_bytes_do_not_depend_on_room(
    sweeping: Sweeping, engine: Make, tmp_path: Path, pair: Pair, made_at_once: dict[str, bytes], copies: int | None
) -> None:
    """All in one batch, one made while another is scored, or one after the other: the same checkpoints."""
    engine()
    nbytes = (pair["sft"] / "model.safetensors").stat().st_size
    sweeping(HEADS, keep="all", disk=copies and int((copies + 0.5) * nbytes))
    assert weights(tmp_path / "out" / "checkpoints") == made_at_once


def test_bytes_do_not_depend_on_what_was_done(
    sweeping: Sweeping, engine: Make, tmp_path: Path, pair: Pair, made_at_once: dict[str, bytes]
) -> None:
    """Stopped with little room, and gone on with much; what lies there is not made again."""
    nbytes = (pair["sft"] / "model.safetensors").stat().st_size
    engine(die_after=3 * 48 + 5)
    with pytest.raises(RuntimeError):
        sweeping(HEADS, keep="all", disk=int(1.5 * nbytes))
    engine()
    told = Told()
    sweeping(HEADS, keep="all", progress=told)
    assert [text for text in told.said if "making" in text] == ["making 2"]
    assert weights(tmp_path / "out" / "checkpoints") == made_at_once


def test_what_a_sweep_has_grown_by_has_the_bytes_of_the_whole(
    sweeping: Sweeping, engine: Make, tmp_path: Path, made_at_once: dict[str, bytes]
) -> None:
    """Those that were scored stay as they are; those that were only made are made again with all others."""
    engine(die_after=3 * 48 + 5)
    with pytest.raises(RuntimeError):
        sweeping(heads(1, 2), keep="all")
    before = weights(tmp_path / "out" / "checkpoints")
    made = engine()
    result = sweeping(HEADS, keep="all")
    found = weights(tmp_path / "out" / "checkpoints")
    first = next(name for name in found if "head-1" in name)
    assert found == made_at_once | {first: before[first]}
    assert all(before[name] != made_at_once[name] for name in before)
    assert "restore-top-20pct-head-1" not in made.answers
    engine()
    assert sweeping(HEADS, keep="all") == result


def test_leftovers_take_no_more_than_the_room(sweeping: Sweeping, engine: Make, tmp_path: Path, pair: Pair) -> None:
    """Of a batch that was stopped while it was made, no more stays than the next run may take."""
    nbytes = (pair["sft"] / "model.safetensors").stat().st_size
    place, seen = tmp_path / "out" / "checkpoints", []
    engine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("surgery.writer.Writer.commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweeping(HEADS, keep="none")
    assert len(list(place.glob("*.partial"))) == 4

    def skill(directory: Path, large: bool) -> float:
        seen.append(sum(path.stat().st_size for path in place.rglob("*.safetensors")))
        return nearness(directory, large)

    engine(skill)
    sweeping(HEADS, keep="none", disk=int(1.5 * nbytes))
    assert 0 < max(seen) <= int(1.5 * nbytes)


def interrupted(*_: Any) -> None:
    """In place of what would end a checkpoint."""
    raise KeyboardInterrupt


def test_memory_is_checked_for_what_is_made_together(sweeping: Sweeping, engine: Make, pair: Pair) -> None:
    """Enough for each variant alone and not for all: told before anything is asked, however it would be divided."""
    spec = {**HEADS, "variants": [{"recipe": "restore-top-20pct", "grid": {"head": [1, "all"]}}, *SPEC["variants"]]}
    made = engine()
    works = plan_sweep(spec, pair, task=TASK).works
    alone = max(work.plan.peak_memory(1) for work in works)
    needed = jobs.Batch([work.plan for work in works]).peak_memory(1)
    assert alone < needed
    nbytes = (pair["sft"] / "model.safetensors").stat().st_size
    for disk in (None, int(2.5 * nbytes)):
        with pytest.raises(PlanError, match=f"raise `--memory` to at least {needed:,}"):
            sweeping(spec, memory=needed - 1, disk=disk)
        assert made.loaded == []
    assert sweeping(spec, memory=needed, disk=int(2.5 * nbytes)).rows


class InProcess:
    """A maker that makes when it is waited for."""

    def __init__(self, *given: Any) -> None:
        self._given = given

    def wait(self) -> None:
        evalkit.sweeps.making.make(*self._given)

    def close(self) -> None:
        pass


def test_what_is_wrong_in_the_other_process_is_told(pair: Pair, tmp_path: Path) -> None:
    """An error there has the same message as here; what it prints besides is no answer."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    batch = [surgery.Variant("wise-ft", tmp_path / "out")]
    with pytest.raises(OutputError) as expected:
        surgery.apply_all(batch, pair)
    with Maker(Batch(batch), pair, Making()) as maker, pytest.raises(SurgeryError) as found:
        maker.wait()
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", "was ended from outside, perhaps for want of memory; bound it with `--memory`"),
        ("exit 1", "was ended from outside"),
        (
            "echo Traceback >&2; echo MemoryError: too much >&2; exit 1",
            "has failed: MemoryError: too much; run the same",
        ),
    ],
)
def test_a_process_that_ends_without_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    """Killed, or failed in an unforeseen way, is one message."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with Maker(Batch([surgery.Variant("wise-ft", tmp_path / "out")]), {}, Making()) as maker:
        with pytest.raises(SurgeryError, match=message):
            maker.wait()
        maker.close()


def test_it_ends_with_the_process_that_started_it(pair: Pair, tmp_path: Path) -> None:
    """Killed without warning, the one that scores leaves nobody behind who writes on."""
    code = (
        "import sys, time; import surgery; from evalkit.sweeps.maker import Batch, Maker, Making\n"
        "base, sft, out = sys.argv[1:]\n"
        "maker = Maker(Batch([surgery.Variant('wise-ft', out)]), {'base': base, 'sft': sft}, Making())\n"
        "print(maker._process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, *map(str, pair.values()), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    start = time.monotonic()
    while alive(pid) and time.monotonic() - start < ENDING:
        time.sleep(0.1)
    assert not alive(pid)
    assert not (tmp_path / "out").exists()


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_error_in_scoring_ends_the_other_process(
    sweeping: Sweeping, engine: Make, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits until what is made ahead is done; the next run goes on with it."""
    nbytes = (pair["sft"] / "model.safetensors").stat().st_size
    ended = []

    class Endless(InProcess):
        def close(self) -> None:
            ended.append(True)

    monkeypatch.setattr(evalkit.sweeps.making, "Maker", Endless)
    made = engine()
    load = made.load

    def failing(model: Any, context: int) -> None:
        if "values" in model.name:
            raise EngineError("no memory")
        load(model, context)

    made.load = failing  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="no memory"):
        sweeping(THREE, disk=3 * nbytes)
    assert ended == [True]


def test_a_full_disk(sweeping: Sweeping, engine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message wherever it fills up; with room again the run goes on to the same result."""
    engine()
    whole = sweeping(THREE, "whole")
    for call, name in ((1, "pwrite"), (40, "pwrite"), (30, "write"), (90, "write")):
        engine()
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full_after(call, getattr(os, name)))
            with pytest.raises(SurgeryError, match=r"No space left on device.*make room"):
                sweeping(THREE)
    engine()
    assert sweeping(THREE).rows == whole.rows
    assert files(tmp_path / "out" / "checkpoints") == files(tmp_path / "whole" / "checkpoints")


def full_after(call: int, real: Callable[..., int]) -> Callable[..., int]:
    """A function that fails from that call on."""
    calls = iter(range(1, call))

    def full(*arguments: Any) -> int:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    return full


def test_ctrl_c_ends_it(pair: Pair, tmp_path: Path) -> None:
    """The signal of a terminal is for the one that scores, which then ends the other."""
    with Maker(Batch([surgery.Variant("wise-ft", tmp_path / "out")]), pair, Making()) as maker:
        pid = maker._process.pid
        assert os.getpgid(pid) == pid != os.getpgid(0)
        os.kill(pid, signal.SIGCONT)
    assert not alive(pid)
