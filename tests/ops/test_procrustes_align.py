"""Value and output projections in the gauge of another model: exactly the same function, nearer to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

import surgery
from surgery.checkpoint import open_checkpoint
from surgery.compute import make_tensors
from surgery.errors import NumericalError
from surgery.jobs import Batch, Job
from surgery.manifest import read_manifest
from surgery.planner import make_plan
from surgery.reader import Reader
from surgery.recipe import load
from surgery.spectral.decomposer import Decomposer
from surgery.unfinished import Places
from surgery.writer import Writer, create_files
from tests.adapters.peft import factors, merged, write_adapter
from tests.gauges import (
    ALIGN,
    CONFIG,
    HIDDEN,
    KV,
    LAYERS,
    QUERIES,
    SHAPE,
    STEPS,
    D,
    Tensors,
    in_gauge,
    moved,
    name,
    parts,
    random,
)
from tests.pairs import files, read, write
from tests.spectral.test_cost import peak
from tests.strategies import orthonormal


def reference(own: Mapping[str, Tensor], other: Mapping[str, Tensor], layer: int) -> list[Tensor]:
    """V', b', O' in float64 by SciPy's Procrustes on all weights of a head, one below the other."""
    (V, b, O), (Vf, bf, Of) = parts(own, layer), parts(other, layer)  # noqa: E741
    V, b, O = V.clone(), b.clone(), O.clone()  # noqa: E741
    group = QUERIES // KV
    for k in range(KV):
        rows = slice(k * D, (k + 1) * D)
        queries = [slice(j * D, (j + 1) * D) for j in range(k * group, (k + 1) * group)]
        stack = [
            torch.cat([values[rows].mT, bias[None, rows], *(out[:, j] for j in queries)])
            for values, bias, out in ((V, b, O), (Vf, bf, Of))
        ]
        R = torch.from_numpy(orthogonal_procrustes(*(X.numpy() for X in stack))[0])
        V[rows], b[rows] = R.mT @ V[rows], R.mT @ b[rows]
        for j in queries:
            O[:, j] = O[:, j] @ R
    return [V, b, O]


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return float(sum((one[key].double() - other[key].double()).square().sum() for key in one)) ** 0.5


@pytest.fixture
def apply(tmp_path: Path) -> Callable[..., Tensors]:
    """Applies a recipe to an `other` and an `own` model, or to what is given by role."""

    def run(
        other: Tensors, own: Tensors, recipe: Mapping[str, Any] = STEPS, config: Mapping[str, Any] = CONFIG, **keys: Any
    ) -> Tensors:
        number = len(list(tmp_path.iterdir()))
        models = [write(tmp_path / f"{number}-{i}", each, config=config) for i, each in enumerate((other, own))]
        return read(surgery.apply(recipe, models, tmp_path / f"{number}-out", **keys).out)

    return run


# --- what is made ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_is_the_formula(apply: Callable[..., Tensors], bias: bool, size: float) -> None:
    """Near and far models, grouped queries: as SciPy's Procrustes has it, in float64; all other tensors stay."""
    other = random(bias=bias, dtype=torch.float64)
    own = in_gauge(moved(other, size))
    found = apply(other, own)
    for layer in range(LAYERS):
        for ours, expected in zip(parts(found, layer), reference(own, other, layer), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)
    turned = {name(i, leaf) for i in range(LAYERS) for leaf in ("v_proj.weight", "v_proj.bias", "o_proj.weight")}
    assert all(torch.equal(found[key], W) for key, W in own.items() if key not in turned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_the_formula_rounded_once(apply: Callable[..., Tensors], dtype: torch.dtype) -> None:
    """Of the weights as they are stored; to half a unit of the last place, and the rounding of float32 before it."""
    other = random(dtype=dtype)
    own = moved(in_gauge(other), 0.1)
    found = apply(other, own)
    for ours, exact in zip(parts(found), reference(own, other, 0), strict=True):
        assert bool(((ours - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.51 + 1e-6).all())


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0])
def test_never_farther(apply: Callable[..., Tensors], size: float) -> None:
    """Of a pure gauge nothing is left; the distance to `from` never grows, and falls where there is a gauge."""
    other = random()
    own = moved(other, size)
    assert distance(apply(other, own), other) <= distance(own, other) * (1 + 1e-7)
    assert distance(apply(other, in_gauge(own)), other) <= distance(own, other) * (1 + 1e-6) + 1e-4
    assert distance(in_gauge(own), other) > 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_model_onto_itself_changes_nothing(apply: Callable[..., Tensors], dtype: torch.dtype) -> None:
    """Not a bit of it, minus zeros included; nor does a head that equals its counterpart beside one that does not."""
    own = random(dtype=dtype)
    own[name(0, "v_proj.weight")][:, 0] = -0.0
    assert apply(own, own).keys() == own.keys()
    for key, W in apply(own, own).items():
        assert torch.equal(W.view(torch.uint8), own[key].view(torch.uint8)), key
    other = {key: W.clone() for key, W in own.items()}
    other[name(0, "v_proj.weight")][D:] += 1  # of the second key/value head
    found = apply(other, own)
    V, b, O = (W for W in parts(found))  # noqa: E741
    V0, b0, O0 = parts(own)
    half = D * QUERIES // 2
    assert torch.equal(V[:D], V0[:D])
    assert torch.equal(b[:D], b0[:D])
    assert torch.equal(O[:, :half], O0[:, :half])
    assert not torch.equal(V[D:], V0[D:])
    assert not torch.equal(O[:, half:], O0[:, half:])


def test_heads_of_zeros_and_of_low_rank_stay_whole(apply: Callable[..., Tensors]) -> None:
    """Where M is singular, or 0, the function stays: both parts turn by one R, the least rotation of those."""
    other, own = random(bias=False), in_gauge(random(bias=False), seed=4)
    for leaf, share in (("v_proj.weight", slice(0, D)), ("o_proj.weight", (slice(None), slice(0, D * QUERIES // 2)))):
        other[name(0, leaf)][share] = 0
    dead = orthonormal(torch.Generator().manual_seed(1), D, D)[:, :3].float()
    for model in (other, own):  # in layer 1 three directions of the first head do nothing
        W, O = model[name(1, "v_proj.weight")], model[name(1, "o_proj.weight")]  # noqa: E741
        W[:D] -= dead @ dead.mT @ W[:D]
        for j in range(QUERIES // KV):
            O[:, j * D : (j + 1) * D] -= O[:, j * D : (j + 1) * D] @ dead @ dead.mT
    found = apply(other, own)
    assert torch.equal(found[name(0, "v_proj.weight")][:D], own[name(0, "v_proj.weight")][:D])
    for layer in range(LAYERS):
        (V, _, O), (V0, _, O0) = parts(found, layer), parts(own, layer)  # noqa: E741
        for j in range(QUERIES):
            columns, k = slice(j * D, (j + 1) * D), j // (QUERIES // KV)
            product = O[:, columns] @ V[k * D : (k + 1) * D]
            torch.testing.assert_close(product, O0[:, columns] @ V0[k * D : (k + 1) * D], rtol=0, atol=1e-5)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=D)),
    "llama, head from the width": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama, one query a head": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_key_value_heads": QUERIES})),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_computes_the_same(tmp_path: Path, kind: str) -> None:
    """A model in a random gauge is aligned back to its own weights, and has its logits before and after."""
    torch.manual_seed(0)
    model = MODELS[kind]().float().eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "other")
    other = read(tmp_path / "other")
    d = getattr(model.config, "head_dim", None) or HIDDEN // QUERIES
    own = in_gauge(other, d=d)
    config = (tmp_path / "other" / "config.json").read_bytes()
    write(tmp_path / "own", own)
    (tmp_path / "own" / "config.json").write_bytes(config)
    surgery.apply(STEPS, [tmp_path / "other", tmp_path / "own"], tmp_path / "out")
    found = read(tmp_path / "out")
    assert distance(own, other) > 1
    assert max(float((found[key] - W).abs().max()) for key, W in other.items()) < 1e-5
    # Towards an independent model the weights are others, and the function is not.
    write(tmp_path / "far", moved(other, 0.3))
    (tmp_path / "far" / "config.json").write_bytes(config)
    surgery.apply(STEPS, [tmp_path / "far", tmp_path / "other"], tmp_path / "turned")
    assert distance(read(tmp_path / "turned"), other) > 1
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        for place in ("own", "out", "turned"):
            logits = type(model).from_pretrained(tmp_path / place)(tokens).logits
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_merge_after_it_does_not_see_the_gauge(apply: Callable[..., Tensors]) -> None:
    """Averages with a model and with its rotated copy are equal; without the step they are far apart."""
    other, own = random(), moved(random(), 0.1)
    merge = {"op": "linear", "models": ["other", "result"]}
    both = STEPS | {"steps": [ALIGN, merge]}
    aligned, rotated = apply(other, own, both), apply(other, in_gauge(own), both)
    assert max(float((aligned[key] - rotated[key]).abs().max()) for key in own) < 1e-5
    plain = STEPS | {"steps": [merge]}
    assert distance(apply(other, own, plain), apply(other, in_gauge(own), plain)) > 1


def test_all_steps_may_follow(apply: Callable[..., Tensors]) -> None:
    """Spectral, by rows, and by entries, also on the bias; each gets the aligned tensor, as from a run of its own."""
    other, own = random(), in_gauge(moved(random(), 0.1))
    steps: list[dict[str, Any]] = [
        {"op": "nuslerp", "models": ["other", "result"], "angles": "rows", "weights": [1, 2]},
        {"op": "restore_directions", "from": "other", "head": "20%"},
        {"op": "ties", "base": "other", "models": ["result"], "density": 0.5},
    ]
    aligned = apply(other, own)
    for step in steps:
        together = apply(other, own, STEPS | {"steps": [ALIGN, step]})
        apart = apply(other, aligned, STEPS | {"steps": [step]})
        assert all(torch.equal(together[key], W) for key, W in apart.items()), step["op"]


def test_a_bundled_recipe(apply: Callable[..., Tensors]) -> None:
    """`align-and-average` is the two steps."""
    other, own = random(), in_gauge(moved(random(), 0.1))
    merge = {"op": "linear", "models": ["other", "result"], "weights": [0.25, 0.75]}
    expected = apply(other, own, STEPS | {"steps": [ALIGN, merge]})
    found = apply(other, own, "align-and-average", settings={"alpha": 0.75})
    assert all(torch.equal(found[key], W) for key, W in expected.items())


def test_bytes_do_not_depend_on_the_run(tmp_path: Path) -> None:
    """Neither on workers, nor on shards, nor on the variants beside; an interrupted run goes on to the same bytes."""
    other, own = random(dtype=torch.bfloat16), in_gauge(moved(random(dtype=torch.bfloat16), 0.1))
    models = [write(tmp_path / "other", other, config=CONFIG), write(tmp_path / "own", own, config=CONFIG)]
    done = surgery.apply(STEPS, models, tmp_path / "one", workers=1)
    expected = files(done.out)
    assert files(surgery.apply(STEPS, models, tmp_path / "three", workers=3).out) == expected
    sharded = [write(tmp_path / f"{i}", each, 3, config=CONFIG) for i, each in enumerate((other, own))]
    found = read(surgery.apply(STEPS, sharded, tmp_path / "shards").out)
    assert all(torch.equal(found[key], W) for key, W in read(done.out).items())
    recipes = [
        STEPS,
        STEPS | {"steps": [{"op": "linear", "models": ["other", "own"]}]},
        STEPS | {"steps": [{"op": "nuslerp", "models": ["other", "own"], "angles": "columns", "weights": [1, 1]}]},
        STEPS | {"start": "other", "steps": [{**ALIGN, "from": "own"}]},
        STEPS | {"steps": [ALIGN, {"op": "linear", "models": ["other", "result"]}]},
    ]
    variants = [surgery.Variant(each, tmp_path / "all" / str(i)) for i, each in enumerate(recipes)]
    surgery.apply_all(variants, dict(zip(("other", "own"), models, strict=True)))
    for i, each in enumerate(recipes):
        apart = surgery.apply(each, models, tmp_path / "apart" / str(i)).out
        assert files(tmp_path / "all" / str(i)) == files(apart), each


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    """Stopped after half of the tensors, with the same bytes in the end."""
    models = [
        write(tmp_path / role, each, config=CONFIG)
        for role, each in (("other", random()), ("own", in_gauge(moved(random(), 0.1))))
    ]
    expected = files(surgery.apply(STEPS, models, tmp_path / "whole").out)

    class Stop:
        """Interrupts at the fifth tensor."""

        count = 0

        def finished(self, *_: object) -> None:
            self.count += 1
            if self.count == 5:
                raise KeyboardInterrupt

        def begin(self, *_: object) -> None: ...
        def stopping(self) -> None: ...
        def note(self, text: str) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        surgery.apply(STEPS, models, tmp_path / "out", workers=1, progress=Stop())
    done = surgery.apply(STEPS, models, tmp_path / "out", workers=1)
    assert done.resumed >= 4
    assert files(done.out) == expected


def test_slices_read_the_layers_that_they_name(tmp_path: Path) -> None:
    """Layers of both models, renumbered, repeated: each is aligned with its counterpart in the slice."""
    other, own = random(layers=3), in_gauge(moved(random(layers=3), 0.1))
    config = CONFIG | {"num_hidden_layers": 3}
    models = [write(tmp_path / role, each, config=config) for role, each in (("other", other), ("own", own))]
    slices = [{"own": "1-2", "other": "0-1"}, {"own": 0, "other": 2}, {"other": 0}]
    recipe = {
        "name": "s",
        "models": ["other", "own"],
        "slices": slices,
        "steps": [{**ALIGN, "select": {"layers": "0-2"}}],
    }
    found = read(surgery.apply(recipe, models, tmp_path / "out").out)
    for layer, (mine, theirs) in enumerate([(1, 0), (2, 1), (0, 2)]):
        one = {key.replace(f".{mine}.", ".0."): W for key, W in own.items()} | {
            name(0, leaf): own[name(mine, leaf)] for leaf in ("v_proj.weight", "v_proj.bias", "o_proj.weight")
        }
        two = {name(0, leaf): other[name(theirs, leaf)] for leaf in ("v_proj.weight", "v_proj.bias", "o_proj.weight")}
        for ours, expected in zip(parts(found, layer), reference(one, two, 0), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert torch.equal(found[name(3, "v_proj.weight")], other[name(0, "v_proj.weight")])


def test_a_copy_before_it_is_what_is_turned(apply: Callable[..., Tensors]) -> None:
    """`reset_layers` changes where the running tensors are read, and no more: of what equals `from` nothing is left."""
    other, own = random(), moved(random(), 0.5)
    reset = {"op": "reset_layers", "from": "other", "select": {"tensors": ["*.0.self_attn.v_proj.*"]}}
    found = apply(other, own, STEPS | {"steps": [reset, ALIGN]})
    mixed = own | {key: other[key] for key in (name(0, "v_proj.weight"), name(0, "v_proj.bias"))}
    for ours, expected in zip(parts(found), reference(mixed, other, 0), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_adapters_are_in_what_is_aligned(tmp_path: Path) -> None:
    """Whatever an adapter changes of the module, of the running model or of `from`: as of the models merged before."""
    other, own = random(), in_gauge(moved(random(), 0.1))
    paths, exact = [], []
    for seed, (role, base, targets) in enumerate((("other", other, ["o_proj"]), ("own", own, ["v_proj", "q_proj"]))):
        lora = {key: 0.1 * W for key, W in factors(base, targets, seed=seed).items()}
        adapter = write_adapter(tmp_path / f"{role}-lora", lora, target_modules=targets)
        paths.append(f"{write(tmp_path / role, base, config=CONFIG)}+{adapter}")
        exact.append(merged(base, lora, target_modules=targets))
    found = read(surgery.apply(STEPS, paths, tmp_path / "out").out)
    for layer in range(LAYERS):
        for ours, expected in zip(parts(found, layer), reference(exact[1], exact[0], layer), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("d", [8, 64])
def test_memory_bounds_what_is_allocated(tmp_path: Path, d: int) -> None:
    """Blocks of both models, products and rotations, and the edits of several variants: no more than `memory` says."""
    g = torch.Generator().manual_seed(0)
    shapes = {"v_proj.weight": (4 * d, 256), "v_proj.bias": (4 * d,), "o_proj.weight": (256, 8 * d)}
    shapes |= {"q_proj.weight": (8 * d, 256), "k_proj.weight": (4 * d, 256)}
    config = CONFIG | {"head_dim": d, "num_attention_heads": 8, "num_key_value_heads": 4}
    models = {
        role: open_checkpoint(
            write(
                tmp_path / role,
                {name(0, leaf): torch.randn(shape, generator=g).bfloat16() for leaf, shape in shapes.items()},
                config=config,
            )
        )
        for role in ("other", "own")
    }
    recipes = [STEPS, STEPS | {"steps": [ALIGN, {"op": "linear", "models": ["other", "result"]}]}]
    made = Batch([make_plan(load(each), models) for each in recipes])
    writers = {i: Writer(Places(tmp_path / str(i)), plan, {}) for i, plan in enumerate(made.plans)}
    create_files(list(writers.values()))
    readers = [Reader(model) for model in made.models]
    cpu = torch.device("cpu")

    def make(job: Job) -> None:
        list(make_tensors(job, job.parts, readers, writers, cpu, lambda: False, Decomposer()))

    jobs = [job for job in made.jobs if any(part.pairs for part in job.parts)]
    assert [len(job.parts) for job in jobs] == [2, 2, 2]
    for job in jobs:
        used = peak(lambda job=job: make(job))
        assert 0.1 * job.memory < used < job.memory, job.name
    for opened in (*readers, *writers.values()):
        opened.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["other", "own"])
def test_what_is_not_finite_is_named(tmp_path: Path, role: str, value: float) -> None:
    """In either model, wherever in the module: with the head, and the files of both."""
    models = {"other": random(), "own": random(seed=1)}
    models[role][name(1, "o_proj.weight")][3, -1] = value
    paths = [write(tmp_path / each, tensors, config=CONFIG) for each, tensors in models.items()]
    with pytest.raises(NumericalError, match=r"model.safetensors` of `other`.*key/value head 1 .*are not finite"):
        surgery.apply(STEPS, paths, tmp_path / "out")


def test_the_plan_tells_what_is_read(tmp_path: Path) -> None:
    """Bytes, memory, hash and manifest know the partners; the size of a head is in the hash, for it decides."""
    other, own = random(), in_gauge(random())
    models = [write(tmp_path / role, each, config=CONFIG) for role, each in (("other", other), ("own", own))]
    plan = surgery.plan(STEPS, models)
    by_name = {tensor.slot.name: tensor for tensor in plan.tensors}
    module = sum(own[name(0, leaf)].nbytes for leaf in ("v_proj.weight", "v_proj.bias", "o_proj.weight"))
    for leaf in ("v_proj.weight", "v_proj.bias", "o_proj.weight"):
        tensor = by_name[name(0, leaf)]
        assert tensor.bytes_read == own[name(0, leaf)].nbytes + 2 * module
        assert plan.memory(tensor) > own[name(0, leaf)].nbytes
        assert plan.flops(tensor) > 22 * KV * D**3
    assert by_name[name(0, "q_proj.weight")].action == "copy"
    for job in Batch([plan]).jobs:
        assert job.memory >= plan.memory(by_name[job.name])
    halved = [
        write(
            tmp_path / f"{role}-4",
            each,
            config=CONFIG | {"head_dim": 4, "num_key_value_heads": 4, "num_attention_heads": 12},
        )
        for role, each in (("other", other), ("own", own))
    ]
    assert surgery.plan(STEPS, halved).hash != plan.hash
    done = surgery.apply(STEPS, models, tmp_path / "out")
    assert surgery.verify(done.out).tensors == len(own)
    manifest = read_manifest(done.out)
    (entry,) = (each for each in manifest.tensors if each.name == name(1, "v_proj.bias"))
    assert entry.done == ("procrustes_align",)
    assert set(entry.read) == {
        "own",
        "other",
        *(f"{r} {name(1, x)}" for r in ("own", "other") for x in ("v_proj.weight", "o_proj.weight")),
    }
