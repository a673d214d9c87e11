"""`MODEL+ADAPTER`: what is read is what PEFT would merge, wherever a model is taken."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import surgery
from surgery.adapters import terms
from surgery.checkpoint import open_checkpoint
from surgery.operand import Operand
from surgery.reader import Reader
from tests.adapters.peft import PREFIX, Tensors, factors, merged, write_adapter
from tests.commands import Run
from tests.pairs import LLAMA_CONFIG, llama, near, read, write
from tests.tiny_models import save_tiny

COPY: dict[str, Any] = {"name": "copy", "models": ["model"], "steps": []}
HALF: dict[str, Any] = {
    "name": "half",
    "models": ["base", "tuned"],
    "steps": [{"op": "linear", "models": ["base", "tuned"], "weights": [0.5, 0.5]}],
}
LAYER = "model.layers.0.self_attn.q_proj"


def loaded(source: str, name: str, *, double: bool = False, elements: int | None = None) -> torch.Tensor:
    """One tensor of a model as the arithmetic sees it, in pieces of so many elements."""
    checkpoint = open_checkpoint(source)
    info = checkpoint.tensors[name]
    step = elements or info.elements
    with Reader(checkpoint) as reader:
        operand = Operand(info, reader, step, torch.device("cpu"), double=double)
        pieces = [
            operand.load(first, (min(step, info.elements - first),)).clone() for first in range(0, info.elements, step)
        ]
    return torch.cat(pieces).view(info.shape)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the rounding of float32."""
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def with_adapter(tmp_path: Path, base: Tensors, adapter: Tensors, **fields: Any) -> str:
    """A base and an adapter on disk, as one model."""
    return f"{write(tmp_path / 'base', base)}+{write_adapter(tmp_path / 'lora', adapter, **fields)}"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"lora_alpha": -7.5},
        {"alpha_pattern": {"q_proj": 5}},
        {"rank_pattern": {"layers.1.mlp.down_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 1}},
    ],
    ids=str,
)
def test_what_is_read_is_what_peft_merges(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Scale by alpha / r, or / sqrt(r), with patterns; tensors without an adapter are as they were."""
    base = llama(dtype=torch.float32)
    ranks = {"model.layers.1.mlp.down_proj": 2} if "rank_pattern" in fields else None
    adapter = factors(base, ranks=ranks)
    model = with_adapter(tmp_path, base, adapter, **fields)
    expected = merged(base, adapter, **fields)
    for name in base:
        found = loaded(model, name)
        assert_near(found, expected[name])
        if not torch.equal(base[name].double(), expected[name]):
            assert open_checkpoint(model).tensors[name].adapted is not None
        else:
            assert torch.equal(found, base[name])


def test_named_adapters_and_whole_tensors(tmp_path: Path) -> None:
    """`lora_A.default.weight` is `lora_A.weight`; modules that are saved take the place of the base's."""
    base = llama(dtype=torch.float32)
    adapter = {key.replace(".weight", ".default.weight"): tensor for key, tensor in factors(base).items()}
    adapter[f"{PREFIX}lm_head.weight"] = torch.randn(20, 8)
    adapter[f"{PREFIX}model.norm.modules_to_save.default.weight"] = torch.randn(8).half()
    model = with_adapter(tmp_path, base, adapter, modules_to_save=["lm_head", "norm"])
    expected = merged(base, adapter)
    for name in base:
        assert_near(loaded(model, name), expected[name])
    assert torch.equal(loaded(model, "lm_head.weight"), adapter[f"{PREFIX}lm_head.weight"])


def test_embeddings(tmp_path: Path) -> None:
    """An embedding's product is added transposed, to what takes its place if that is stored too."""
    base = llama(dtype=torch.float32)
    module = f"{PREFIX}model.embed_tokens"
    adapter = {
        f"{module}.lora_embedding_A": torch.randn(3, 20),
        f"{module}.lora_embedding_B": torch.randn(8, 3),
        f"{module}.base_layer.weight": torch.randn(20, 8),
    }
    model = with_adapter(tmp_path, base, adapter)
    assert_near(loaded(model, "model.embed_tokens.weight"), merged(base, adapter)["model.embed_tokens.weight"])


@pytest.mark.parametrize("stored", [False, True], ids=["head not stored", "head stored"])
@pytest.mark.parametrize("whole", [False, True], ids=["factors", "whole"])
def test_tied_embeddings_that_stay_tied(tmp_path: Path, stored: bool, whole: bool) -> None:
    """With `ensure_weight_tying`, PEFT stores embedding and head both, as one: so they are read."""
    base = llama()
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()
    kept = base if stored else {name: W for name, W in base.items() if name != "lm_head.weight"}
    embedding, head = f"{PREFIX}model.embed_tokens", f"{PREFIX}lm_head"
    if whole:
        W = torch.randn(20, 8)
        shared = {f"{embedding}.weight": W, f"{head}.weight": W.clone()}
    else:
        A, B = torch.randn(3, 20), torch.randn(8, 3)
        shared = {
            f"{embedding}.lora_embedding_A": A, f"{embedding}.lora_embedding_B": B,
            f"{head}.lora_A.weight": B.T, f"{head}.lora_B.weight": A.T,
        }  # fmt: skip
    adapter = factors(base) | shared
    settings = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    path = write(tmp_path / "base", kept, config=settings)
    model = f"{path}+{write_adapter(tmp_path / 'lora', adapter, ensure_weight_tying=True)}"
    expected = merged(base, adapter)
    for name in kept:
        assert_near(loaded(model, name), expected[name])
    if stored:
        assert torch.equal(loaded(model, "lm_head.weight"), loaded(model, "model.embed_tokens.weight"))


def test_fan_in_fan_out_and_another_prefix(tmp_path: Path) -> None:
    """Weights stored as inputs x outputs take the transpose, square ones too; `h.0` of GPT-2 is `transformer.h.0`."""
    base = {
        "wte.weight": torch.randn(11, 6),
        "h.0.attn.c_attn.weight": torch.randn(6, 18),
        "h.0.attn.c_proj.weight": torch.randn(6, 6),
        "h.0.attn.c_proj.bias": torch.randn(6),
    }
    adapter: Tensors = {}
    for module, (inputs, outputs) in {"c_attn": (6, 18), "c_proj": (6, 6)}.items():
        adapter[f"{PREFIX}transformer.h.0.attn.{module}.lora_A.weight"] = torch.randn(3, inputs)
        adapter[f"{PREFIX}transformer.h.0.attn.{module}.lora_B.weight"] = torch.randn(outputs, 3)
    adapter[f"{PREFIX}transformer.h.0.attn.c_proj.lora_B.bias"] = torch.randn(6)
    model = with_adapter(tmp_path, base, adapter, fan_in_fan_out=True, lora_bias=True)
    expected = merged(
        {f"transformer.{name}": tensor for name, tensor in base.items()}, adapter, fan_in_fan_out=True, lora_bias=True
    )
    for name in base:
        assert_near(loaded(model, name), expected[f"transformer.{name}"])


def test_several_adapters(tmp_path: Path) -> None:
    """`base+a+b` is b merged into a merged into base; what b replaces is not what a added to."""
    base = llama(dtype=torch.float32)
    one, two = factors(base), factors(base, ("q_proj",), rank=2, seed=9)
    two[f"{PREFIX}model.layers.0.mlp.down_proj.weight"] = torch.randn(8, 16)
    model = with_adapter(tmp_path, base, one)
    second = write_adapter(tmp_path / "two", two, r=2, lora_alpha=3)
    expected = merged(merged(base, one), two, r=2, lora_alpha=3)
    for name in base:
        assert_near(loaded(f"{model}+{second}", name), expected[name])
    swapped = open_checkpoint(f"{tmp_path / 'base'}+{second}+{tmp_path / 'lora'}")
    assert [adapter.source for adapter in swapped.adapters] == [str(second), str(tmp_path / "lora")]


@pytest.mark.parametrize("elements", [1, 5, 16, 37, 1000])
def test_bits_do_not_depend_on_pieces(tmp_path: Path, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that begin and end within rows have the bits of the whole matrix, of products made in many blocks."""
    monkeypatch.setattr(terms, "BLOCK_ELEMENTS", 40)
    base = llama(dtype=torch.bfloat16, width=16)
    model = with_adapter(tmp_path, base, factors(base))
    name = "model.layers.1.mlp.down_proj.weight"
    found = loaded(model, name, elements=elements)
    assert torch.equal(found, loaded(model, name))
    assert_near(found, merged(base, factors(base))[name])


def test_float64_is_float64(tmp_path: Path) -> None:
    """In float64 the product is, too."""
    base = {name: tensor.double() for name, tensor in llama(dtype=torch.float32).items()}
    adapter = factors(base, dtype=torch.float64)
    model = with_adapter(tmp_path, base, adapter)
    found = loaded(model, f"{LAYER}.weight", double=True)
    torch.testing.assert_close(found, merged(base, adapter)[f"{LAYER}.weight"], rtol=1e-14, atol=1e-14)


def test_apply_without_steps_merges(tmp_path: Path) -> None:
    """A recipe without steps for these tensors rounds the sum once; all others are copied byte for byte."""
    base = llama()
    adapter = factors(base)
    model = with_adapter(tmp_path, base, adapter)
    step = {"op": "linear", "models": ["model"], "weights": [1], "select": {"tensors": ["norm"]}}
    applied = surgery.apply({**COPY, "steps": [step]}, [model], tmp_path / "out")
    out, expected = read(tmp_path / "out"), merged(base, adapter)
    actions = {tensor.slot.name: tensor.action for tensor in applied.plan.tensors}
    for name in base:
        if name.removesuffix(".weight").endswith(("q_proj", "down_proj")):
            assert actions[name] == "adapt"
            assert torch.all((out[name].double() - expected[name]).abs() <= 2**-8 * expected[name].abs() + 1e-6)
        else:
            assert actions[name] == ("compute" if "norm" in name else "copy")
            assert torch.equal(out[name], base[name])
    entries = {
        entry["name"]: entry["done"] for entry in json.loads((tmp_path / "out/surgery.json").read_text())["tensors"]
    }
    assert entries[f"{LAYER}.weight"] == ["adapt"]
    assert surgery.verify(tmp_path / "out").tensors == len(base)


def test_merging_an_adapter_computes_what_it_touches(tmp_path: Path, surgery_command: Run) -> None:
    """`merge-adapter` copies every other tensor byte for byte, even NaN, and the plan's summary says so."""
    base = llama()
    base["model.norm.weight"][0] = torch.nan
    adapter = factors(base)
    model = with_adapter(tmp_path, base, adapter)
    applied = surgery.apply("merge-adapter", [model], tmp_path / "out")
    expected, found = merged(base, adapter), read(tmp_path / "out")
    actions = {tensor.slot.name: tensor.action for tensor in applied.plan.tensors}
    assert {name for name, action in actions.items() if action == "adapt"} == {
        name for name in base if not torch.equal(base[name].double().nan_to_num(), expected[name].nan_to_num())
    }
    assert set(actions.values()) == {"adapt", "copy"}
    for name, action in actions.items():
        if action == "copy":
            assert torch.equal(found[name].view(torch.int16), base[name].view(torch.int16))
    code, out, _ = surgery_command("plan", "merge-adapter", model)
    assert code == 0
    assert "adapt of sft" in out
    assert "copy of sft" in out
    assert "passthrough" not in out.partition("tensors")[2]


def test_apply_is_that_of_the_merged_model(tmp_path: Path) -> None:
    """Steps see the sum: a merge with the base+adapter is a merge with the model that PEFT would have merged."""
    base = llama(dtype=torch.float32)
    adapter = factors(base)
    model = with_adapter(tmp_path, base, adapter)
    whole = write(tmp_path / "whole", {name: W.float() for name, W in merged(base, adapter).items()})
    for i, tuned in enumerate((model, whole)):
        surgery.apply(HALF, [tmp_path / "base", tuned], tmp_path / f"out{i}")
        surgery.apply("restore-top-20pct", [tmp_path / "base", tuned], tmp_path / f"top{i}")
    for kind in ("out", "top"):
        one, two = read(tmp_path / f"{kind}0"), read(tmp_path / f"{kind}1")
        for name in base:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-4)
    base_twice = surgery.apply(HALF, [tmp_path / "base", tmp_path / "base"], tmp_path / "same")
    assert base_twice.plan.hash != surgery.plan(HALF, [tmp_path / "base", model]).hash


def test_the_merged_model_answers_like_one_with_adapters(tmp_path: Path) -> None:
    """In transformers: logits of the merged checkpoint are those of the base whose layers add s B (A x)."""
    base = save_tiny(tmp_path / "base")
    adapter = factors(load_file(base / "model.safetensors"), ("q_proj", "o_proj", "gate_proj", "lm_head"))
    adapter = {name: 0.1 * tensor for name, tensor in adapter.items()}
    lora = write_adapter(tmp_path / "lora", adapter, use_rslora=True, lora_alpha=2)
    surgery.apply("merge-adapter", [f"{base}+{lora}"], tmp_path / "out")
    network = LlamaForCausalLM.from_pretrained(base)
    tokens = torch.arange(4, 24)[None]
    with torch.no_grad():
        bare = network(tokens).logits
        for name, module in network.named_modules():
            A, B = (adapter.get(f"{PREFIX}{name}.lora_{factor}.weight") for factor in "AB")
            if A is not None and B is not None:
                module.register_forward_hook(
                    lambda _, x, y, A=A, B=B: y + 2 / math.sqrt(3) * x[0] @ A.T @ B.T  # type: ignore[misc]
                )
        expected = network(tokens).logits
        found = LlamaForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (expected - bare).abs().max() > 0.1


def test_layers_that_are_stacked_keep_their_adapters(tmp_path: Path) -> None:
    """A layer that a slice moves has the adapter of the layer that it was."""
    base = llama(dtype=torch.float32)
    adapter = factors(base)
    model = with_adapter(tmp_path, base, adapter)
    config = {**LLAMA_CONFIG, "num_hidden_layers": 2}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    recipe = {"name": "turn", "models": ["model"], "slices": [{"model": "1"}, {"model": "0"}], "steps": []}
    step = {"op": "linear", "models": ["model"], "weights": [1], "select": {"tensors": ["norm"]}}
    surgery.apply({**recipe, "steps": [step]}, [model], tmp_path / "out")
    out, expected = read(tmp_path / "out"), merged(base, adapter)
    assert_near(out[f"{LAYER}.weight"], expected["model.layers.1.self_attn.q_proj.weight"])


def test_plans_count_adapters(tmp_path: Path) -> None:
    """Bytes, memory and arithmetic of a plan are larger by what the adapter takes."""
    base = llama()
    adapter = factors(base)
    model = with_adapter(tmp_path, base, adapter)
    bare, full = (surgery.plan(HALF, [tmp_path / "base", tuned]) for tuned in (tmp_path / "base", model))
    assert full.bytes_read - bare.bytes_read == sum(tensor.nbytes for tensor in adapter.values())
    for one, two in zip(bare.tensors, full.tensors, strict=True):
        adapted = two.slot.name.removesuffix(".weight").endswith(("q_proj", "down_proj"))
        assert (full.flops(two) - bare.flops(one) == 6 * two.slot.elements) == adapted
        assert (full.memory(two) > bare.memory(one)) == adapted


def test_identities_tell_adapters_apart(tmp_path: Path) -> None:
    """Another scale, another adapter or none gives another plan, and the manifest says where each came from."""
    base = llama()
    write(tmp_path / "base", base)
    write_adapter(tmp_path / "a", factors(base))
    write_adapter(tmp_path / "b", factors(base), lora_alpha=1)
    sources = [f"{tmp_path / 'base'}{adapter}" for adapter in ("", f"+{tmp_path / 'a'}", f"+{tmp_path / 'b'}")]
    assert len({surgery.plan(HALF, [tmp_path / "base", source]).hash for source in sources}) == 3
    surgery.apply(HALF, [tmp_path / "base", sources[1]], tmp_path / "out")
    entry = json.loads((tmp_path / "out/surgery.json").read_text())["inputs"]["tuned"]
    assert entry["source"] == sources[1]
    assert entry["files"].keys() == {"model.safetensors"}
    (found,) = entry["adapters"]
    assert found["source"] == str(tmp_path / "a")
    assert len(found["config"]) == 64


def test_resuming_wants_the_same_adapter(tmp_path: Path) -> None:
    """What was left of a run with one adapter is not gone on with when its file has changed."""
    base = llama()
    model = with_adapter(tmp_path, base, factors(base))
    weights = tmp_path / "lora/adapter_model.safetensors"

    class Interrupt(Exception):
        pass

    class Progress:
        def begin(self, plan: object) -> None: ...

        def finished(self, tensor: object, resumed: bool) -> None:  # noqa: ARG002
            raise Interrupt

        def stopping(self) -> None: ...
        def note(self, text: str) -> None: ...

    with pytest.raises(Interrupt):
        surgery.apply(HALF, [tmp_path / "base", model], tmp_path / "out", workers=1, progress=Progress())
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(surgery.OutputError, match="inputs that have changed"):
        surgery.apply(HALF, [tmp_path / "base", model], tmp_path / "out")


def test_an_adapter_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """A file that was written to since it was opened is refused by name."""
    base = llama()
    checkpoint = open_checkpoint(with_adapter(tmp_path, base, factors(base)))
    with (tmp_path / "lora/adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with Reader(checkpoint) as reader, pytest.raises(surgery.CheckpointError, match=r"lora/adapter_model.*modified"):
        Operand(checkpoint.tensors[f"{LAYER}.weight"], reader, 64, torch.device("cpu"), double=False)


def test_out_must_not_touch_an_adapter(tmp_path: Path) -> None:
    """OUT inside an adapter's directory is refused."""
    base = llama()
    model = with_adapter(tmp_path, base, factors(base))
    with pytest.raises(surgery.OutputError, match="lies inside the input `tuned`"):
        surgery.apply(HALF, [tmp_path / "base", model], tmp_path / "lora/out")


def test_infinite_factors_are_told(tmp_path: Path) -> None:
    """A factor with infinity makes a result that is refused by name, without a step too."""
    base = llama()
    adapter = factors(base)
    adapter[f"{PREFIX}{LAYER}.lora_A.weight"][0, 0] = torch.inf
    model = with_adapter(tmp_path, base, adapter)
    step = {"op": "linear", "models": ["model"], "weights": [1], "select": {"tensors": ["norm"]}}
    with pytest.raises(surgery.NumericalError, match=f"`{LAYER}.weight`.*infinite"):
        surgery.apply({**COPY, "steps": [step]}, [model], tmp_path / "out")


def test_inspect_tells_adapters(tmp_path: Path, surgery_command: Run) -> None:
    """`surgery inspect` names them, in words and as JSON, with a doubt about the base."""
    base = llama()
    write(tmp_path / "other", near(base))
    model = with_adapter(tmp_path, base, factors(base), base_model_name_or_path=str(tmp_path / "other"))
    code, out, _ = surgery_command("inspect", model)
    assert code == 0
    assert f"adapter: {tmp_path / 'lora'}: rank 3, 4 modules" in out
    assert "as its base" in out
    code, out, _ = surgery_command("inspect", model, "--json")
    found = json.loads(out)
    assert found["adapters"][0]["modules"] == 4
    assert len(found["notes"]) == 1
    assert any("as its base" in remark for remark in surgery.plan(HALF, [tmp_path / "base", model]).remarks)


def test_decompositions_that_are_kept_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache that knows the base's, base+adapter has its own: bytes are those of a run without a cache."""
    base = {"model.layers.0.mlp.up_proj.weight": torch.randn(256, 256), "model.layers.0.mlp.b.weight": torch.eye(256)}
    model = with_adapter(tmp_path, base, factors(base, ("up_proj",)))
    other = write_adapter(tmp_path / "other", factors(base, ("up_proj",), seed=6))
    step = {"op": "truncate_rank", "rank": 8, "select": {"tensors": ["*.up_proj.*"]}}
    sources = [str(tmp_path / "base"), model, f"{tmp_path / 'base'}+{other}"]
    for place in ("off", str(tmp_path / "cache")):
        monkeypatch.setenv("SURGERY_CACHE", place)
        for i, source in enumerate(sources):
            surgery.apply({**COPY, "steps": [step]}, [source], tmp_path / f"{i}-{place == 'off'}", workers=1)
    outs = [
        read(tmp_path / f"{i}-{off}")["model.layers.0.mlp.up_proj.weight"] for i in range(3) for off in (True, False)
    ]
    assert all(torch.equal(outs[i], outs[i + 1]) for i in (0, 2, 4))
    assert not torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[2], outs[4])


def test_diff_compares_what_is_read(tmp_path: Path) -> None:
    """`surgery diff` of a base and itself with an adapter finds the adapter's change, and names the adapter."""
    base = llama(dtype=torch.float32)
    adapter = factors(base)
    model = with_adapter(tmp_path, base, adapter)
    found = surgery.diff(tmp_path / "base", model, workers=1)
    assert list(found.models) == ["base", "lora"]
    changed = found.matrices.set_index("matrix")["relative_change"]
    expected = merged(base, adapter)[f"{LAYER}.weight"]
    relative = torch.linalg.norm(expected - base[f"{LAYER}.weight"]) / torch.linalg.norm(base[f"{LAYER}.weight"])
    assert changed[f"{LAYER}.weight"] == pytest.approx(float(relative), rel=1e-5)
    assert changed["model.layers.0.mlp.up_proj.weight"] == 0
