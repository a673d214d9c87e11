"""Many outputs in one pass: the bytes of separate runs, or their rounding; everything read and decomposed once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery import decompositions
from surgery.console import ApplyProgress
from surgery.errors import NumericalError, OutputError, PlanError
from surgery.header import TensorInfo
from surgery.jobs import Batch
from surgery.plan import Plan, TensorPlan
from surgery.reader import Reader
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import Triplets
from surgery.writer import Writer
from tests.pairs import files, llama, near, read, write

HEADS = ("30%", "5%", "20%", "10%")  # the largest first: what is left to make then needs less


def recipe(*steps: Mapping[str, Any], **keys: Any) -> dict[str, Any]:
    """A recipe of these steps, for the roles that they name."""
    named = {role for step in steps for role in (step.get("from"), *step.get("models", ())) if role}
    return {"name": "r", "models": sorted(named - {"result"} | {"sft"}), "start": "sft", "steps": list(steps), **keys}


def restore(head: str = "$head", **keys: Any) -> dict[str, Any]:
    """A step that restores the leading directions of the base."""
    return {"op": "restore_directions", "from": "base", "head": head, **keys}


AVERAGE = {"op": "linear", "models": ["base", "sft"], "weights": [0.3, 0.7]}
RESET = {"op": "reset_layers", "from": "base", "select": {"layers": "first 1", "tensors": ["norm"]}}
KNOB = recipe(restore(), parameters={"head": "20%"})


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """A base, its fine-tuned model and an RL model on top, large enough for the float32 route."""
    base = llama(layers=2, width=64)
    sft = near(base)
    named = {"base": base, "sft": sft, "rl": near(sft, seed=2, change=0.05)}
    return {role: write(tmp_path / role, tensors, i + 1) for i, (role, tensors) in enumerate(named.items())}


def variants(root: Path, recipes: Sequence[Mapping[str, Any]]) -> list[surgery.Variant]:
    """One variant a recipe, in numbered directories."""
    return [surgery.Variant(each, root / str(i)) for i, each in enumerate(recipes)]


def heads(root: Path, values: Sequence[str] = HEADS, **settings: object) -> list[surgery.Variant]:
    """One variant for each value of `head`."""
    return [surgery.Variant(KNOB, root / value, {"head": value, **settings}) for value in values]


def apart(each: surgery.Variant, models: Mapping[str, Path], out: Path, **options: Any) -> Path:
    """The output of `apply`."""
    assert isinstance(each.recipe, dict)
    roles = {role: models[role] for role in each.recipe["models"]}
    return surgery.apply(each.recipe, roles, out, settings=each.settings, **options).out


MIXED = [
    recipe(restore("20%", orthogonalize="rotate")),
    recipe(restore("all"), AVERAGE | {"models": ["result", "base"]}),
    recipe({"op": "swap_directions", "from": "rl"}, RESET),
    recipe({"op": "restore_values", "from": "base"}),
    {**recipe({"op": "restore_directions", "from": "sft", "head": "10%", "tail": "10%"}), "start": "rl"},
    recipe({"op": "truncate_rank", "rank": "50%"}, restore("20%")),
    recipe(restore("20%"), restore("5%", tail="10%")),
    recipe(AVERAGE),
    recipe(RESET),
    recipe(AVERAGE, output={"dtype": "float32"}),
]
MIXED[4]["models"] = ["sft", "rl"]


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_one_variant_is_apply(models: dict[str, Path], tmp_path: Path, number: int) -> None:
    """One variant gives the bytes of `apply`, whatever the recipe, with models that it does not use beside."""
    (variant,) = variants(tmp_path / "all", MIXED[number : number + 1])
    (applied,) = surgery.apply_all([variant], models)
    assert applied.out == Path(variant.out)
    assert files(applied.out) == files(apart(variant, models, tmp_path / "one"))


def test_equal_requests_give_the_bytes_of_apply(models: dict[str, Path], tmp_path: Path) -> None:
    """Copies, sums, and edits that ask for decompositions of one size, each have the bytes of their own run."""
    recipes = [
        recipe(restore("20%")),
        recipe(restore("20%", orthogonalize="rotate")),
        recipe(AVERAGE),
        recipe(RESET, AVERAGE | {"select": {"tensors": ["embedding"]}}),
        recipe({"op": "truncate_rank", "rank": "20%"}),
        recipe(AVERAGE, output={"dtype": "float32"}),
    ]
    made = variants(tmp_path / "all", recipes)
    surgery.apply_all(made, models)
    for i, variant in enumerate(made):
        assert files(Path(variant.out)) == files(apart(variant, models, tmp_path / str(i))), i


def reference(models: Mapping[str, Path], name: str, head: str) -> Tensor:
    """The published formula in float64, with full decompositions."""
    W, b = (read(models[role])[name].double() for role in ("sft", "base"))
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    Ub, _, Vbh = torch.linalg.svd(b, full_matrices=False)
    h = int(int(head.rstrip("%")) * len(S) / 100 + 0.5)
    return torch.cat([Ub[:, :h], U[:, h:]], dim=1) * S @ torch.cat([Vbh[:h], Vh[h:]])


def within_a_unit(found: Tensor, expected: Tensor) -> bool:
    """Whether no entry is off by more than one unit of bf16, or by some roundings of the largest in float32."""
    _, exponent = torch.frexp(expected.double())
    unit = 2.0 ** (exponent.double() - 8)
    off = (found.double() - expected.double()).abs()
    return bool((off <= unit.clamp_min(3e-6 * float(expected.abs().max()))).all())


def test_many_heads_differ_from_their_own_runs_by_rounding(models: dict[str, Path], tmp_path: Path) -> None:
    """Parts of the largest decomposition: in bf16 no entry is off by more than one unit, and few by one."""
    made = heads(tmp_path / "all")
    surgery.apply_all(made, models)
    other = total = 0
    for variant in made:
        ours, theirs = read(Path(variant.out)), read(apart(variant, models, tmp_path / Path(variant.out).name))
        for name, expected in theirs.items():
            assert within_a_unit(ours[name], expected), name
            other, total = other + int((ours[name] != expected).sum()), total + expected.numel()
    assert 0 < other < 0.002 * total  # 0: nothing was shared


def test_many_heads_are_as_near_to_float64(models: dict[str, Path], tmp_path: Path) -> None:
    """In float32, a part of a larger decomposition is no farther from the exact result than one of its own size."""
    made = heads(tmp_path / "all", **{"output.dtype": "float32"})
    surgery.apply_all(made, models)
    for variant in made:
        head = Path(variant.out).name
        ours, theirs = read(Path(variant.out)), read(apart(variant, models, tmp_path / head))
        for name in (name for name in ours if name.endswith("proj.weight")):
            exact = reference(models, name, head)
            error, own = ((found[name].double() - exact).norm() / exact.norm() for found in (ours, theirs))
            assert error < 1.2 * own + 1e-7, (head, name)


class Counting(Decomposer):
    """Counts what it is asked for, by the matrix's content."""

    def __init__(self) -> None:
        self.triplets_of: Counter[tuple[float, ...]] = Counter()
        self.values_of: Counter[tuple[float, ...]] = Counter()

    def triplets(self, W: Tensor, head: int, tail: int = 0) -> Triplets:
        self.triplets_of[tuple(W.flatten()[:4].tolist())] += 1
        return super().triplets(W, head, tail)

    def values(self, W: Tensor) -> Tensor:
        self.values_of[tuple(W.flatten()[:4].tolist())] += 1
        return super().values(W)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """The decomposer of the next runs."""
    decomposer = Counting()
    monkeypatch.setattr(decompositions, "open_decompositions", lambda _: decomposer)
    return decomposer


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each byte of a tensor was read, by checkpoint and name."""
    found: Counter[tuple[str, str]] = Counter()
    real = Reader.read_into

    def counted(self: Reader, info: TensorInfo, buffer: Any, offset: int = 0) -> None:
        found[self._shards[info.file].path.parent.name, info.name] += memoryview(buffer).nbytes / info.nbytes  # type: ignore[assignment]
        real(self, info, buffer, offset)

    monkeypatch.setattr(Reader, "read_into", counted)
    return found


def test_each_input_is_read_once_and_decomposed_once(
    models: dict[str, Path], tmp_path: Path, counting: Counting, bytes_read: Counter[tuple[str, str]]
) -> None:
    """Whatever the number of variants, of recipes and of sizes; a full decomposition gives the values too."""
    recipes = [
        *(recipe(restore(head)) for head in HEADS),
        recipe(restore("10%", tail="10%")),
        recipe(restore("all")),
        recipe(AVERAGE),
        recipe({"op": "restore_values", "from": "base"}),
        recipe({"op": "swap_directions", "from": "base"}),
    ]
    surgery.apply_all(variants(tmp_path, recipes), models)
    assert set(bytes_read.values()) == {1}
    assert {role for role, _ in bytes_read} == {"base", "sft"}
    assert set(counting.triplets_of.values()) == {1}
    assert len(counting.triplets_of) == 2 * 2 * 7  # both models' seven matrices in both layers
    assert not counting.values_of


def test_operations_that_measure_share_what_is_one_piece(
    models: dict[str, Path], tmp_path: Path, counting: Counting, bytes_read: Counter[tuple[str, str]]
) -> None:
    """Matrices are read and decomposed once, however many variants measure what was made of them, and how often."""
    ties = {"op": "ties", "base": "base", "models": ["result", "rl"], "rescale": True}
    recipes = [
        recipe(restore(head), {**ties, "density": density}) | {"models": ["base", "sft", "rl"]}
        for head in ("10%", "20%")
        for density in (0.3, 0.6)
    ]
    made = surgery.apply_all(variants(tmp_path, recipes), models)
    assert set(bytes_read.values()) == {1}
    assert len(counting.triplets_of) == 2 * 2 * 7
    assert set(counting.triplets_of.values()) == {1}
    tensors = made[0].plan.tensors
    assert {tensor.passes for tensor in tensors} == {1}
    assert made[0].plan.bytes_read == 3 * sum(tensor.slot.nbytes for tensor in tensors)


def test_values_alone_are_computed_once(models: dict[str, Path], tmp_path: Path, counting: Counting) -> None:
    """Where no variant needs all triplets, the values of a matrix serve all that ask for them."""
    recipes = [recipe({"op": "swap_directions", "from": role}) for role in ("base", "rl")]
    surgery.apply_all(variants(tmp_path, recipes), models)
    assert set(counting.values_of.values()) == {1}
    assert len(counting.values_of) == 2 * 7


def test_a_model_with_two_roles_is_read_once(
    models: dict[str, Path], tmp_path: Path, bytes_read: Counter[tuple[str, str]]
) -> None:
    """Recipes may call one model differently."""
    tuned = {"name": "t", "models": ["base", "tuned"], "steps": [restore("20%")]}
    surgery.apply_all(variants(tmp_path, [KNOB, tuned]), {**models, "tuned": models["sft"]})
    assert set(bytes_read.values()) == {1}
    assert read(tmp_path / "0").keys() == read(tmp_path / "1").keys()
    assert all(torch.equal(tensor, read(tmp_path / "1")[name]) for name, tensor in read(tmp_path / "0").items())


def test_runs_of_elements_within_a_matrix_are_those_of_the_tensor(tmp_path: Path) -> None:
    """A sum that is made beside a decomposition, from a matrix larger than a run of elements, keeps its bytes."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.layers.0.mlp.up_proj.weight": torch.randn((8200, 65), generator=generator),
        "model.layers.0.mlp.experts.gate_up_proj": torch.randn((3, 33, 17), generator=generator),
        "model.embed_tokens.weight": torch.randn((20, 8), generator=generator),
        "model.empty": torch.zeros((0, 4)),
    }
    models = {"base": write(tmp_path / "base", tensors), "sft": write(tmp_path / "sft", near(tensors))}
    made = variants(tmp_path / "all", [recipe(AVERAGE), recipe({"op": "truncate_rank", "rank": 3})])
    surgery.apply_all(made, models)
    for i, variant in enumerate(made):
        assert files(Path(variant.out)) == files(apart(variant, models, tmp_path / str(i))), i


def test_float64_stays_with_those_that_read_it(models: dict[str, Path], tmp_path: Path) -> None:
    """A variant with a float64 model computes in float64, the others as without it."""
    wide = {name: tensor.double() for name, tensor in read(models["base"]).items()}
    models = {**models, "rl": write(tmp_path / "wide", wide)}
    mixed = [AVERAGE | {"models": ["rl", "sft"]}, restore("20%") | {"from": "rl"}, restore("20%")]
    recipes = [recipe(AVERAGE), *(recipe(step, output={"dtype": "float32"}) for step in mixed)]
    made = variants(tmp_path / "all", recipes)
    surgery.apply_all(made, models)
    for i, variant in enumerate(made):
        assert files(Path(variant.out)) == files(apart(variant, models, tmp_path / str(i))), i


def test_mixed_recipes_are_what_apply_makes(models: dict[str, Path], tmp_path: Path) -> None:
    """Other operations, starts, roles and numbers of steps in one run: exact or, where sizes differ, to rounding."""
    made = variants(tmp_path / "all", MIXED)
    results = surgery.apply_all(made, models)
    assert [result.out for result in results] == [Path(variant.out) for variant in made]
    assert all(result.resumed == 0 for result in results)
    for i, variant in enumerate(made):
        ours, theirs = read(Path(variant.out)), read(apart(variant, models, tmp_path / str(i)))
        for name, expected in theirs.items():
            assert within_a_unit(ours[name], expected), (i, name)
        assert surgery.verify(variant.out).tensors == len(ours)


def test_bytes_depend_neither_on_workers_nor_on_order(models: dict[str, Path], tmp_path: Path) -> None:
    """One worker, four, and the variants the other way round give the same files."""
    recipes = [*MIXED, *(recipe(restore(head)) for head in HEADS)]
    surgery.apply_all(variants(tmp_path / "one", recipes), models, workers=1)
    surgery.apply_all(variants(tmp_path / "four", recipes), models, workers=4)
    surgery.apply_all(variants(tmp_path / "back", recipes)[::-1], models)
    assert files(tmp_path / "one") == files(tmp_path / "four") == files(tmp_path / "back")


class _Stopping:
    """Progress that interrupts after so many tensors, and counts."""

    def __init__(self, after: int = -1) -> None:
        self.left = after
        self.resumed = 0
        self.plans: list[Plan] = []

    def begin(self, plan: Plan) -> None:
        self.plans.append(plan)

    def finished(self, _tensor: TensorPlan, resumed: bool) -> None:
        self.resumed += resumed
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def stopping(self) -> None:
        pass

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.mark.parametrize("after", [1, 2, 3, 30, 83])
def test_an_interrupted_run_goes_on_to_the_same_bytes(models: dict[str, Path], tmp_path: Path, after: int) -> None:
    """Wherever it stopped, also between two variants of one tensor: what was made is kept, the bytes are the same."""
    recipes = [*(recipe(restore(head)) for head in HEADS), recipe(AVERAGE)]
    surgery.apply_all(variants(tmp_path / "whole", recipes), models)
    made = variants(tmp_path / "out", recipes)
    with pytest.raises(KeyboardInterrupt):
        surgery.apply_all(made, models, workers=1, progress=_Stopping(after))
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix not in (".partial", ".jsonl")]
    progress = _Stopping()
    results = surgery.apply_all(made, models, progress=progress)
    assert progress.resumed == sum(result.resumed for result in results) == after
    assert len(progress.plans) == len(recipes)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_finished_outputs_are_left_and_decide_over_sizes_all_the_same(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies while outputs get their names: those that have one stay, the rest gets its own bytes."""
    surgery.apply_all(heads(tmp_path / "whole"), models)
    real, calls = Writer.commit, iter(range(9))

    def once(self: Writer, *arguments: Any) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        real(self, *arguments)

    monkeypatch.setattr(Writer, "commit", once)
    with pytest.raises(KeyboardInterrupt):
        surgery.apply_all(heads(tmp_path / "out"), models)
    monkeypatch.setattr(Writer, "commit", real)
    for head in HEADS[2:]:  # as if the tensors had not been made either
        for path in (tmp_path / "out" / f"{head}.partial").iterdir():
            path.write_bytes(bytes(path.stat().st_size))
    inodes = [(tmp_path / "out" / head).stat().st_ino for head in HEADS[:2]]
    for overwrite in (False, True):
        results = surgery.apply_all(heads(tmp_path / "out"), models, overwrite=overwrite)
        assert [result.resumed == len(result.plan.tensors) for result in results] == [True, True, overwrite, overwrite]
    assert [(tmp_path / "out" / head).stat().st_ino for head in HEADS[:2]] == inodes
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("change", ["input", "config", "recipe", "shard", "fresh"])
def test_only_what_is_current_counts_as_finished(models: dict[str, Path], tmp_path: Path, change: str) -> None:
    """Inputs that were touched, files beside the weights, another recipe, a lost file: it only exists already."""
    made = heads(tmp_path / "out", HEADS[:2])
    surgery.apply_all(made, models)
    inode = (tmp_path / "out" / HEADS[0]).stat().st_ino
    if change == "input":
        status = (models["base"] / "model.safetensors").stat()
        os.utime(models["base"] / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))  # as `cp -p` does
    elif change == "config":
        (models["sft"] / "generation_config.json").write_text('{"max_length": 7}')
    elif change == "recipe":
        made[0] = surgery.Variant(KNOB, made[0].out, {"head": "25%"})
    elif change == "shard":
        (tmp_path / "out" / HEADS[0] / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match=r"exists already; choose another OUT, or add `--overwrite`"):
        surgery.apply_all(made, models, fresh=change == "fresh")
    surgery.apply_all(made, models, fresh=change == "fresh", overwrite=True)
    assert (tmp_path / "out" / HEADS[0]).stat().st_ino != inode
    assert surgery.verify(made[0].out).tensors == len(read(models["sft"]))
    assert (made[0].out / "generation_config.json").exists() == (change == "config")


def test_leftovers_of_another_set_are_made_anew_where_bits_differ(models: dict[str, Path], tmp_path: Path) -> None:
    """Fewer variants than in the interrupted run: only those keep its tensors whose bytes do not depend on it."""
    recipes = [*(recipe(restore(head)) for head in HEADS), recipe(AVERAGE)]
    with pytest.raises(KeyboardInterrupt):
        surgery.apply_all(variants(tmp_path / "out", recipes), models, workers=1, progress=_Stopping(40))
    made = variants(tmp_path / "out", recipes)
    results = surgery.apply_all([*made[1:3], made[4]], models)
    assert [result.resumed > 0 for result in results] == [False, False, True]
    surgery.apply_all(variants(tmp_path / "two", recipes)[1:3], models)
    for i in (1, 2):
        assert files(tmp_path / "out" / str(i)) == files(tmp_path / "two" / str(i))


def test_processes_that_are_killed_leave_nothing_or_everything(tmp_path: Path) -> None:
    """Killed in the middle of any write, rename or removal, a run leaves of each output nothing, the old or the new."""
    base = llama(layers=1, width=40)
    models = {"base": write(tmp_path / "base", base), "sft": write(tmp_path / "sft", near(base), 2)}
    recipes = [recipe(restore("40%", select={"tensors": ["mlp"]}), RESET), recipe(restore("5%"))]
    whole, made = variants(tmp_path / "whole", recipes), variants(tmp_path / "outs", recipes)
    surgery.apply_all(whole, models)
    for variant in made:
        surgery.apply(recipe(RESET), models, variant.out)
    rows = [[each, str(done.out), str(out.out)] for each, done, out in zip(recipes, whole, made, strict=True)]
    arguments = [json.dumps({role: str(path) for role, path in models.items()}), json.dumps(rows)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80  # kills


def test_an_error_in_one_variant_keeps_the_work_of_all(models: dict[str, Path], tmp_path: Path) -> None:
    """A result that overflows stops the run; no output appears, and what the others had can be gone on with."""
    large = AVERAGE | {"weights": [1e6, 1e6], "normalize": False}
    made = variants(tmp_path / "out", [recipe(restore("20%")), recipe(large, output={"dtype": "float16"})])
    with pytest.raises(NumericalError, match=r"`\S+out/1`: `model\.\S+` .*float16 holds up to"):
        surgery.apply_all(made, models, workers=1)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.partial")) == ["0.partial", "1.partial"]
    (applied,) = surgery.apply_all(made[:1], models)
    assert applied.resumed > 0


@pytest.mark.parametrize(
    ("outs", "message"),
    [
        (["x", "x"], "are in each other's way"),
        (["x", "y", "x/z"], "are in each other's way"),
        (["x", "x.partial"], "are in each other's way"),
        (["x", ".x.replaced-by-surgery/y"], "are in each other's way"),
        (["x", "link/../x"], "are in each other's way"),
        (["x", "rl"], r"is, contains or lies inside the input `rl`"),
        (["rl/x", "y"], r"is, contains or lies inside the input `rl`"),
    ],
)
def test_outputs_that_touch_each_other_or_any_input_are_refused(
    models: dict[str, Path], tmp_path: Path, outs: list[str], message: str
) -> None:
    """The input may be that of another variant; nothing is written."""
    (tmp_path / "link").symlink_to(models["base"])
    before = set(tmp_path.rglob("*"))
    made = [surgery.Variant(KNOB, tmp_path / out) for out in outs]
    made[-1] = surgery.Variant(recipe({"op": "swap_directions", "from": "rl"}), made[-1].out)
    with pytest.raises(OutputError, match=message):
        surgery.apply_all(made, models, overwrite=True)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("parts", [[HEADS[:2], HEADS[2:]], [[head] for head in HEADS[::-1]]])
def test_made_in_parts_the_bytes_are_those_of_all(
    models: dict[str, Path], tmp_path: Path, parts: list[Sequence[str]]
) -> None:
    """With the rest beside, a part of the variants has the bytes that it has among all; only the part is made."""
    surgery.apply_all(heads(tmp_path / "whole"), models)
    for part in parts:
        beside = heads(tmp_path / "beside", [head for head in HEADS if head not in part])
        results = surgery.apply_all(heads(tmp_path / "out", part), models, beside=beside)
        assert [result.out.name for result in results] == [*part]
        assert all(result.resumed == 0 for result in results)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not (tmp_path / "beside").exists()


def test_what_is_beside_counts_for_memory(models: dict[str, Path], tmp_path: Path) -> None:
    """The bound that one part asks for is that of all parts."""
    small, large = heads(tmp_path / "out", ("5%", "30%"))
    both = [models["base"], models["sft"]]
    plans = [surgery.plan(KNOB, both, settings=each.settings) for each in (small, large)]
    needed = max(plan.peak_memory(1) for plan in plans)
    with pytest.raises(PlanError, match="raise `--memory` to at least"):
        surgery.apply_all([small], models, beside=[large], memory=needed - 1)
    assert surgery.apply_all([small], models, beside=[large], memory=needed + (1 << 22))


def test_a_missing_role_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    """With the roles that there are."""
    made = variants(tmp_path, [KNOB, recipe({"op": "swap_directions", "from": "ppo"})])
    with pytest.raises(PlanError, match="no model for the role `ppo`; found `base`, `sft`, `rl`"):
        surgery.apply_all(made, models)


def test_the_disk_must_hold_all_outputs(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one or for two is not enough for four: one message, before a tensor file exists."""
    size = surgery.plan(KNOB, [models["base"], models["sft"]]).bytes_written
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=2 * size, f_frsize=1))
    with pytest.raises(OutputError, match=f"the 4 outputs there take {4 * size:,} bytes, {2 * size:,} more than"):
        surgery.apply_all(heads(tmp_path / "out"), models)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=4 * size, f_frsize=1))
    surgery.apply_all(heads(tmp_path / "out"), models)


def test_memory_is_bounded_and_a_bound_too_small_is_told(models: dict[str, Path], tmp_path: Path) -> None:
    """What is kept for all variants counts; with the least memory the bytes are those without a bound."""
    results = surgery.apply_all(heads(tmp_path / "a"), models)
    batch = Batch([result.plan for result in results])
    needed = batch.peak_memory(1)
    assert needed > max(result.plan.peak_memory(1) for result in results)
    surgery.apply_all(heads(tmp_path / "b"), models, memory=needed, workers=4)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with pytest.raises(PlanError, match=f"raise `--memory` to at least {needed:,}"):
        surgery.apply_all(heads(tmp_path / "c"), models, memory=needed - 1)
    assert not list(tmp_path.glob("c*"))


def test_progress_adds_up(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each output is announced before the first tensor is finished, and the parts add up to the whole."""
    with ApplyProgress() as progress:
        surgery.apply_all(heads(tmp_path / "out"), models, progress=progress)
    count = len(HEADS) * len(read(models["sft"]))
    assert (progress._done, progress._count) == (count, count)
    assert progress._spent == progress._cost
    assert not capsys.readouterr().out


def test_nothing_to_make(models: dict[str, Path]) -> None:
    """No variants are no error."""
    assert surgery.apply_all([], models) == []
