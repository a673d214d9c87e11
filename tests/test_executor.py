"""Whole runs: exact bytes whatever the workers, the shards, the order; interruptions; memory."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import surgery
from surgery import executor
from surgery.errors import CheckpointError, NumericalError, OutputError, PlanError
from surgery.executor import execute
from surgery.jobs import Batch, Job, Part
from surgery.plan import INTERPRETER_BYTES, Plan, TensorPlan
from surgery.unfinished import Places
from surgery.writer import Writer
from tests.pairs import files, llama, near, read, write

RESTORE: dict[str, Any] = {
    "name": "restore",
    "models": ["base", "sft"],
    "steps": [
        {"op": "restore_directions", "from": "base", "head": "20%", "orthogonalize": "rotate"},
        {"op": "linear", "models": ["base", "sft"], "weights": [0.25, 0.75], "select": {"tensors": ["embedding"]}},
        {"op": "reset_layers", "from": "base", "select": {"layers": "first 1", "tensors": ["norm"]}},
    ],
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and its fine-tuned model, in three shards each."""
    base = llama(layers=3, width=16, vocabulary=40)
    return write(tmp_path / "base", base, 3), write(tmp_path / "sft", near(base), 3)


def test_tensors_that_no_step_selects_are_byte_identical(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """What no step selects is what `start` holds; what is reset is what `from` holds; the rest changes."""
    surgery.apply(RESTORE, pair, tmp_path / "out")
    base, sft, out = read(pair[0]), read(pair[1]), read(tmp_path / "out")
    assert out.keys() == sft.keys()
    for name in out:
        if name.endswith("norm.weight"):
            expected = base if name.startswith("model.layers.0.") else sft
            assert torch.equal(out[name].view(torch.int16), expected[name].view(torch.int16)), name
        elif name == "lm_head.weight":
            assert torch.equal(out[name], sft[name])
        else:
            assert not torch.equal(out[name], sft[name]), name


def test_linear_equals_a_float64_reference_rounded_once(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A weighted sum is computed in float32 or better and rounded to bf16 once."""
    recipe = {"name": "sum", "models": ["base", "sft"]}
    step = {"op": "linear", "models": ["base", "sft"], "weights": [0.3, 0.7]}
    surgery.apply({**recipe, "steps": [step]}, pair, tmp_path / "out")
    base, sft, out = read(pair[0]), read(pair[1]), read(tmp_path / "out")
    for name in out:
        exact = 0.3 * base[name].double() + 0.7 * sft[name].double()
        ulp = torch.from_numpy(np.spacing(exact.abs().float().numpy()).astype(np.float64)) * 2**16
        assert torch.all((out[name].double() - exact).abs() <= 0.5001 * ulp), name


@pytest.mark.parametrize("workers", [2, 8])
def test_bytes_do_not_depend_on_the_number_of_workers(pair: tuple[Path, Path], tmp_path: Path, workers: int) -> None:
    """Every file of the output, the manifest included, is the same for 1, 2 and 8 workers."""
    surgery.apply(RESTORE, pair, tmp_path / "one", workers=1)
    surgery.apply(RESTORE, pair, tmp_path / "many", workers=workers)
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_values_do_not_depend_on_the_shard_layout(tmp_path: Path) -> None:
    """The same models in one file or in five give the same tensors, bit for bit."""
    base = llama(layers=3, width=16)
    outs = []
    for shards in (1, 5):
        models = [write(tmp_path / f"{role}{shards}", t, shards) for role, t in (("b", base), ("s", near(base)))]
        surgery.apply(RESTORE, models, tmp_path / f"out{shards}")
        outs.append(read(tmp_path / f"out{shards}"))
    assert outs[0].keys() == outs[1].keys()
    assert all(torch.equal(outs[0][name].view(torch.int16), outs[1][name].view(torch.int16)) for name in outs[0])


def test_bytes_do_not_depend_on_the_hash_seed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Processes with different `PYTHONHASHSEED` write the same bytes."""
    for seed in ("1", "2"):
        code = f"import surgery; surgery.apply({RESTORE!r}, {list(map(str, pair))!r}, {str(tmp_path / seed)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert files(tmp_path / "1") == files(tmp_path / "2")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_output_dtype_is_the_one_asked_for(pair: tuple[Path, Path], tmp_path: Path, dtype: str) -> None:
    """Every tensor, computed or not, has the chosen dtype, and the config says so."""
    surgery.apply(RESTORE, pair, tmp_path / "out", settings={"output.dtype": dtype})
    assert {str(tensor.dtype) for tensor in read(tmp_path / "out").values()} == {f"torch.{dtype}"}
    assert f'"{dtype}"' in (tmp_path / "out" / "config.json").read_text()


def test_a_result_that_overflows_float16_is_an_error(tmp_path: Path) -> None:
    """Values beyond 65,504 are not turned into infinity: the tensor is named and OUT does not appear."""
    base = llama(layers=1)
    base["model.norm.weight"] = torch.full((8,), 7e4, dtype=torch.bfloat16)
    models = [write(tmp_path / "a", base), write(tmp_path / "b", near(base))]
    with pytest.raises(NumericalError, match=r"`model.norm.weight` .* reaches 7.*float16 holds up to 6.55e\+04"):
        surgery.apply(RESTORE, models, tmp_path / "out", settings={"output.dtype": "float16"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    """NaN or infinity in a matrix to be decomposed: file and tensor are named, OUT does not appear."""
    base = llama(layers=2)
    sft = near(base)
    sft["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    models = [write(tmp_path / "a", base, 2), write(tmp_path / "b", sft, 2)]
    with pytest.raises(NumericalError, match=r"`model.layers.1.mlp.up_proj.weight` .*model-00002-of-00002"):
        surgery.apply(RESTORE, models, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _Interrupting:
    """Progress that raises after so many tensors, as Ctrl-C in a callback would."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.left, self.error = after, error
        self.resumed = 0

    def begin(self, plan: Plan) -> None:
        pass

    def finished(self, _tensor: TensorPlan, resumed: bool) -> None:
        self.resumed += resumed
        self.left -= 1
        if self.left == 0:
            raise self.error

    def stopping(self) -> None:
        pass


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """After an interruption nothing is at OUT, finished tensors are not made again, and the bytes are the same."""
    surgery.apply(RESTORE, pair, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        surgery.apply(RESTORE, pair, tmp_path / "out", workers=1, progress=_Interrupting(7, KeyboardInterrupt()))
    assert not (tmp_path / "out").exists()
    counting = _Interrupting(-1, KeyboardInterrupt())
    surgery.apply(RESTORE, pair, tmp_path / "out", progress=counting)
    assert counting.resumed == 7
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not list(tmp_path.glob("out.*"))


def test_a_tensor_that_was_damaged_meanwhile_is_made_again(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Resuming trusts the bytes, not the journal: zeroed shards (a power failure, say) are filled again."""
    surgery.apply(RESTORE, pair, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        surgery.apply(RESTORE, pair, tmp_path / "out", workers=1, progress=_Interrupting(9, KeyboardInterrupt()))
    for path in (tmp_path / "out.partial").glob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    surgery.apply(RESTORE, pair, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_another_plan_leaves_the_leftovers_alone_unless_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Other work refuses to touch `OUT.partial`; `fresh` drops it."""
    with pytest.raises(KeyboardInterrupt):
        surgery.apply(RESTORE, pair, tmp_path / "out", workers=1, progress=_Interrupting(3, KeyboardInterrupt()))
    before = files(tmp_path / "out.partial")
    other = {**RESTORE, "steps": RESTORE["steps"][1:]}
    with pytest.raises(OutputError, match=r"another recipe, other parameters.*--fresh"):
        surgery.apply(other, pair, tmp_path / "out")
    assert files(tmp_path / "out.partial") == before
    surgery.apply(other, pair, tmp_path / "out", fresh=True)
    assert surgery.verify(tmp_path / "out").tensors == len(read(pair[1]))


def test_inputs_that_changed_are_not_mixed_with_earlier_work(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A shard that was rewritten after the interruption is noticed."""
    with pytest.raises(KeyboardInterrupt):
        surgery.apply(RESTORE, pair, tmp_path / "out", workers=1, progress=_Interrupting(3, KeyboardInterrupt()))
    os.utime(pair[0] / "model-00001-of-00003.safetensors")
    with pytest.raises(OutputError, match="inputs that have changed since"):
        surgery.apply(RESTORE, pair, tmp_path / "out")


def test_a_process_that_is_killed_leaves_nothing_or_everything(tmp_path: Path) -> None:
    """Killed in the middle of any write, rename or removal, a run leaves no OUT, the old or the new one."""
    base = llama(layers=1, width=16)
    models = [write(tmp_path / "base", base, 2), write(tmp_path / "sft", near(base), 2)]
    surgery.apply(RESTORE, models, tmp_path / "whole")
    surgery.apply("wise-ft", models, tmp_path / "out")
    variants = [[RESTORE, str(tmp_path / "whole"), str(tmp_path / "out")]]
    arguments = [json.dumps(dict(zip(RESTORE["models"], map(str, models), strict=True))), json.dumps(variants)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40  # kills


@pytest.mark.parametrize("workers", [1, 4])
def test_a_full_disk_is_told_and_what_is_finished_is_kept(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """ENOSPC in a write gives one message; once there is room, the run goes on."""
    real, calls = os.pwrite, iter(range(10**6))

    def full_after_a_while(fd: int, data: bytes, position: int) -> int:
        if next(calls) >= 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, position)

    monkeypatch.setattr(os, "pwrite", full_after_a_while)
    with pytest.raises(OutputError, match="No space left on device; make room, and run the same command again"):
        surgery.apply(RESTORE, pair, tmp_path / "out", workers=workers)
    monkeypatch.setattr(os, "pwrite", real)
    counting = _Interrupting(-1, KeyboardInterrupt())
    surgery.apply(RESTORE, pair, tmp_path / "out", progress=counting)
    assert counting.resumed > 0
    assert surgery.verify(tmp_path / "out").tensors == len(read(pair[1]))


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is known beforehand."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=512))
    with pytest.raises(OutputError, match=r"too small: the output takes [\d,]+ bytes, [\d,]+ more than are free"):
        surgery.apply(RESTORE, pair, tmp_path / "out")
    assert not list((tmp_path / "out.partial").glob("*.safetensors"))


def test_an_input_that_vanishes_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A shard that is deleted between plan and execution: one message, what is finished is kept."""
    made = surgery.plan(RESTORE, pair)
    (pair[1] / "model-00002-of-00003.safetensors").unlink()
    with (
        Writer(Places(tmp_path / "out"), made, {}) as writer,
        pytest.raises(CheckpointError, match="model-00002-of-00003"),
    ):
        execute(Batch([made]), {0: writer}, workers=2)


def test_two_processes_cannot_write_one_output(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The second is told; the first is not disturbed."""
    made = surgery.plan(RESTORE, pair)
    with (
        Writer(Places(tmp_path / "out"), made, {}),
        pytest.raises(OutputError, match="another process is writing here"),
    ):
        Writer(Places(tmp_path / "out"), made, {})


def test_memory_is_bounded_and_a_bound_too_small_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """With little memory tensors wait for each other and the bytes stay; with too little the plan says how much."""
    made = surgery.plan(RESTORE, pair)
    needed = max(map(made.memory, made.tensors))
    surgery.apply(RESTORE, pair, tmp_path / "a", memory=INTERPRETER_BYTES + needed, workers=4)
    surgery.apply(RESTORE, pair, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with pytest.raises(PlanError, match=f"raise `--memory` to at least {INTERPRETER_BYTES + needed:,}"):
        surgery.apply(RESTORE, pair, tmp_path / "c", memory=INTERPRETER_BYTES + needed - 1)
    assert not list(tmp_path.glob("c*"))


def test_tensors_under_way_never_take_more_than_the_budget(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many workers and room for two of the largest tensors, the sum of what is under way stays below the bound."""
    made = surgery.plan(RESTORE, pair)
    room = 2 * max(map(made.memory, made.tensors))
    under_way, seen = [0], []
    real = executor.make_tensors

    def watched(job: Job, *others: Any) -> Iterator[tuple[Part, str]]:
        under_way[0] += job.memory
        seen.append(under_way[0])
        time.sleep(0.002)
        yield from real(job, *others)
        under_way[0] -= job.memory

    monkeypatch.setattr(executor, "make_tensors", watched)
    surgery.apply(RESTORE, pair, tmp_path / "out", memory=INTERPRETER_BYTES + room, workers=8)
    assert len(seen) == len(made.tensors)
    assert room / 2 < max(seen) <= room


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    """The peak of a process that averages 16 layers is that of one that averages 8, though it moves 70 MB more."""
    peaks = []
    for layers in (8, 16):
        names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(layers)]
        tensors = {name: torch.full((1500, 1500), 0.5) for name in names}
        models = [str(write(tmp_path / f"{role}{layers}", tensors)) for role in ("base", "sft")]
        code = (
            f"import surgery; surgery.apply('wise-ft', {models!r}, {str(tmp_path / f'out{layers}')!r});"
            "print(open('/proc/self/status').read())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peak = re.search(r"VmHWM:\s*(\d+) kB", done.stdout)  # `getrusage` would count the parent's memory too
        assert peak is not None
        peaks.append(int(peak[1]) * 1024)
    assert abs(peaks[1] - peaks[0]) < 20e6
    assert peaks[1] < INTERPRETER_BYTES + 50e6


def test_masks_of_infinities_survive_a_cast(tmp_path: Path) -> None:
    """A tensor that no step selects may hold what it likes; only an overflow of the cast itself is refused."""
    base = llama(layers=1, dtype=torch.float32)
    base["model.mask"] = torch.tensor([0.0, -torch.inf, torch.nan])
    models = [write(tmp_path / "a", base), write(tmp_path / "b", base)]
    step = {"op": "linear", "models": ["base", "sft"], "select": {"tensors": ["mlp"]}}
    recipe = {"name": "r", "models": ["base", "sft"], "steps": [step], "output": {"dtype": "float16"}}
    surgery.apply(recipe, models, tmp_path / "out")
    assert read(tmp_path / "out")["model.mask"].isneginf().tolist() == [False, True, False]


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_is_an_error(pair: tuple[Path, Path], tmp_path: Path, workers: int) -> None:
    """Instead of a run that waits for ever."""
    with pytest.raises(ValueError, match="expected at least 1"):
        surgery.apply(RESTORE, pair, tmp_path / "out", workers=workers)


@pytest.mark.parametrize("device", ["quantum", "meta", "cuda:99"])
def test_an_unknown_device_is_told(pair: tuple[Path, Path], tmp_path: Path, device: str) -> None:
    """A device that torch does not know, or that the machine lacks, is an error before anything is written."""
    with pytest.raises(PlanError, match=f"device `{device}`: cannot be used here"):
        surgery.apply(RESTORE, pair, tmp_path / "out", device=device)
    assert not (tmp_path / "out.partial").exists()


def test_experts_in_one_tensor_are_edited_one_by_one(tmp_path: Path) -> None:
    """A 3-D stack of experts gives what the experts give as matrices of their own."""
    generator = torch.Generator().manual_seed(0)
    stack = {"model.layers.0.mlp.experts.gate_up_proj": torch.randn((3, 8, 12), generator=generator)}
    loose = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": stack[next(iter(stack))][i].clone() for i in range(3)}
    embedding = {"model.embed_tokens.weight": torch.randn((20, 8), generator=generator)}
    outs = []
    for kind, tensors in (("stack", stack | embedding), ("loose", loose | embedding)):
        moved = {name: tensor * 1.5 + tensor.roll(1, -1) for name, tensor in tensors.items()}
        models = [write(tmp_path / f"{kind}-a", tensors), write(tmp_path / f"{kind}-b", moved)]
        step = {"op": "restore_directions", "from": "base", "head": 3, "select": {"tensors": ["mlp"]}}
        recipe = {"name": "experts", "models": ["base", "sft"], "steps": [step]}
        surgery.apply(recipe, models, tmp_path / f"{kind}-out")
        outs.append(read(tmp_path / f"{kind}-out"))
    for i in range(3):
        single = outs[1][f"model.layers.0.mlp.experts.{i}.up_proj.weight"]
        assert torch.equal(outs[0]["model.layers.0.mlp.experts.gate_up_proj"][i], single)
