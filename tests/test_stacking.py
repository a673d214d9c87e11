"""Layers of one or several models become the layers of another model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery.errors import PlanError
from surgery.recipe import load
from tests.commands import Run
from tests.pairs import LLAMA_CONFIG, llama, near, read, write

Tensors = dict[str, torch.Tensor]


def config(layers: int, **more: Any) -> dict[str, Any]:
    """The config of a Llama with so many layers."""
    return {**LLAMA_CONFIG, "num_hidden_layers": layers, **more}


def recipe(slices: list[dict[str, Any]], *steps: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A recipe over base and sft."""
    return {"name": "test", "models": ["base", "sft"], "slices": slices, "steps": list(steps), **keys}


def stacked(outside: Tensors, *layers: tuple[Tensors, int]) -> Tensors:
    """The reference: tensors outside the layers of one model, and these layers, renumbered by plain text."""
    found = {name: tensor for name, tensor in outside.items() if ".layers." not in name}
    for number, (tensors, layer) in enumerate(layers):
        old, new = f"model.layers.{layer}.", f"model.layers.{number}."
        found |= {name.replace(old, new): tensor for name, tensor in tensors.items() if name.startswith(old)}
    return found


def equal(found: Tensors, expected: Tensors) -> bool:
    """Whether names and bytes are the same."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[name].view(torch.uint8), expected[name].view(torch.uint8)) for name in expected
    )


class Pair:
    """A base of four layers and an SFT checkpoint of six, written to a directory."""

    def __init__(self, directory: Path) -> None:
        self.base, self.sft = llama(layers=4, seed=1), llama(layers=6, seed=2)
        self.directory = directory
        self.paths = [
            write(directory / "base", self.base, config=config(4)),
            write(directory / "sft", self.sft, config=config(6)),
        ]

    def apply(self, made: dict[str, Any], **keys: Any) -> Path:
        """The output of a recipe."""
        return surgery.apply(made, self.paths, self.directory / "out", **keys).out

    def faults(self, made: dict[str, Any] | Path) -> list[str]:
        """What is wrong with its plan."""
        with pytest.raises(PlanError) as caught:
            surgery.plan(made, self.paths)
        return [str(fault) for fault in caught.value.faults]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


# --- what is made ------------------------------------------------------------------------------------------------


def test_a_stack_of_two_models_to_the_byte(pair: Pair) -> None:
    """Layers in the order of the slices, renumbered; all else from the first slice's first role; no steps."""
    made = recipe([{"base": "0-2"}, {"sft": [1, "3-4"]}, {"base": 2}, {"sft": "last 1"}])
    del made["steps"]
    out = pair.apply(made)
    base, sft = pair.base, pair.sft
    layers = [(base, 0), (base, 1), (base, 2), (sft, 1), (sft, 3), (sft, 4), (base, 2), (sft, 5)]
    assert equal(read(out), stacked(base, *layers))
    assert json.loads((out / "config.json").read_text()) == config(8)
    surgery.verify(out)


def test_start_gives_what_is_outside_the_layers(pair: Pair) -> None:
    """Embedding, last norm, head and config are those of `start` where it is given."""
    out = pair.apply(recipe([{"base": "all"}], start="sft"))
    assert equal(read(out), stacked(pair.sft, *((pair.base, i) for i in range(4))))
    assert load(recipe([{"sft": 0}, {"base": 0}])).start == "sft"  # the first slice's first role
    assert json.loads((out / "config.json").read_text()) == config(4)


def test_one_model_may_be_made_shallower_with_a_parameter(tmp_path: Path) -> None:
    """`first 75%`, given as a parameter and changed by a setting."""
    sft = llama(layers=4)
    path = write(tmp_path / "sft", sft, config=config(4))
    made = {"name": "r", "models": ["sft"], "parameters": {"kept": "first 75%"}, "slices": [{"sft": "$kept"}]}
    out = surgery.apply(made, [path], tmp_path / "out").out
    assert equal(read(out), stacked(sft, *((sft, i) for i in range(3))))
    assert len(surgery.plan(made, [path], settings={"kept": "last 1"}).tensors) == 9 + 3


def test_steps_work_on_the_layers_of_each_roles_own_range(pair: Pair) -> None:
    """A merge reads sft's layers 2-3 for layers 0-1; a role that a slice does not name has its first role's numbers."""
    mean = {"op": "linear", "models": ["base", "sft"], "select": {"layers": "0-2"}}
    out = pair.apply(recipe([{"base": "0-1", "sft": "2-3"}, {"sft": 3}, {"sft": "4-5"}], mean))
    base, sft = pair.base, pair.sft
    expected = stacked(base, (base, 0), (base, 1), (sft, 3), (sft, 4), (sft, 5))
    others = stacked(base, (sft, 2), (sft, 3), (base, 3))
    for name in others:
        if ".layers." in name:
            expected[name] = ((expected[name].float() + others[name].float()) / 2).bfloat16()
    assert equal(read(out), expected)


def test_copies_and_the_running_tensor_follow_the_ranges(pair: Pair) -> None:
    """`reset_layers` takes the layer of the role's range; `result` is the layer of the first role."""
    reset = {"op": "reset_layers", "from": "sft", "select": {"layers": "last 1"}}
    mean = {"op": "linear", "models": ["result", "sft"], "select": {"layers": 0, "tensors": ["mlp"]}}
    out = pair.apply(recipe([{"base": [3, 0], "sft": [5, 4]}], reset, mean))
    expected = stacked(pair.base, (pair.base, 3), (pair.sft, 4))
    for part in ("gate_proj", "up_proj", "down_proj"):
        one, other = (
            t.float()
            for t in (pair.base[f"model.layers.3.mlp.{part}.weight"], pair.sft[f"model.layers.5.mlp.{part}.weight"])
        )
        expected[f"model.layers.0.mlp.{part}.weight"] = ((one + other) / 2).bfloat16()
    assert equal(read(out), expected)


def test_gradients_run_over_the_outputs_depth(pair: Pair) -> None:
    """Layer i of the output's five is at depth i/4, whatever its number in its model."""
    weights = {"base": 1, "sft": {"value": [0, 1]}}
    step = {
        "op": "linear",
        "models": ["base", "sft"],
        "weights": weights,
        "normalize": False,
        "select": {"layers": "all"},
    }
    out = read(pair.apply(recipe([{"base": "0-2"}, {"base": "2-3", "sft": "0-1"}], step)))
    part = "mlp.up_proj.weight"
    for i, (ours, theirs) in enumerate([(0, 0), (1, 1), (2, 2), (2, 0), (3, 1)]):
        W, V = (tensors[f"model.layers.{n}.{part}"].float() for tensors, n in ((pair.base, ours), (pair.sft, theirs)))
        assert torch.equal(out[f"model.layers.{i}.{part}"], (W + i / 4 * V).bfloat16())


def test_spectral_steps_read_their_range(tmp_path: Path) -> None:
    """All directions of the layer that the range names: U_b S V_b^T of sft's own values, not of another layer."""
    base = llama(layers=3, dtype=torch.float32)
    sft = near(base)
    paths = [write(tmp_path / name, tensors, config=config(3)) for name, tensors in (("base", base), ("sft", sft))]
    step = {"op": "swap_directions", "from": "base", "select": {"tensors": ["*.up_proj.weight"]}}
    out = read(surgery.apply(recipe([{"sft": 0, "base": 2}], step), paths, tmp_path / "out").out)
    part = "mlp.up_proj.weight"
    S = torch.linalg.svdvals(sft[f"model.layers.0.{part}"].double())
    U, _, Vh = torch.linalg.svd(base[f"model.layers.2.{part}"].double(), full_matrices=False)
    torch.testing.assert_close(out[f"model.layers.0.{part}"].double(), (U * S) @ Vh, rtol=0, atol=1e-5)


def test_transformers_runs_the_result(tmp_path: Path) -> None:
    """A deeper Llama loads all of its weights and no others, and computes what its layers in this order compute."""
    from transformers import AutoModelForCausalLM

    from tests.tiny_models import save_tiny

    paths = [save_tiny(tmp_path / "base", seed=1), save_tiny(tmp_path / "sft", seed=2)]
    out = surgery.apply(recipe([{"base": "0-1"}, {"sft": [1, 0]}, {"base": 1}]), paths, tmp_path / "out").out
    base, sft = (AutoModelForCausalLM.from_pretrained(path) for path in paths)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.arange(12).view(1, -1)
    expected = base.model.embed_tokens(tokens)
    positions = base.model.rotary_emb(expected, torch.arange(12).view(1, -1))
    mask = torch.full((12, 12), -torch.inf).triu(1).view(1, 1, 12, 12)
    for owner, layer in ((base, 0), (base, 1), (sft, 1), (sft, 0), (base, 1)):
        expected = owner.model.layers[layer](expected, attention_mask=mask, position_embeddings=positions)
    torch.testing.assert_close(model(tokens).logits, base.lm_head(base.model.norm(expected)))
    assert model.generate(tokens, max_new_tokens=3, do_sample=False).shape == (1, 15)


def test_transformers_accepts_the_lists_of_the_config(tmp_path: Path) -> None:
    """It refuses a config with another number of `layer_types` than of layers; layers keep their kinds of attention."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 4, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    kinds = ["full_attention", "sliding_attention"]
    before = Qwen3Config(**sizes, **heads, layer_types=kinds * 2, use_sliding_window=True, sliding_window=4)
    Qwen3ForCausalLM(before).save_pretrained(tmp_path / "sft")
    made = {"name": "r", "models": ["sft"], "slices": [{"sft": [0, 2]}, {"sft": "1-3"}]}
    out = surgery.apply(made, [tmp_path / "sft"], tmp_path / "out").out
    model, info = Qwen3ForCausalLM.from_pretrained(out, output_loading_info=True)
    assert model.config.layer_types == [kinds[i] for i in (0, 0, 1, 0, 1)]
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_tied_heads_stay_tied(tmp_path: Path) -> None:
    """No head is written where there was none; a stored one follows the embedding."""
    tensors = llama(layers=2, tied=True)
    path = write(tmp_path / "sft", tensors, config=config(2, tie_word_embeddings=True))
    step = {
        "op": "linear",
        "models": ["result"],
        "weights": [2],
        "normalize": False,
        "select": {"tensors": ["embedding"]},
    }
    made = {"name": "r", "models": ["sft"], "slices": [{"sft": [0, 0]}], "steps": [step]}
    out = read(surgery.apply(made, [path], tmp_path / "out").out)
    assert "lm_head.weight" not in out
    stored = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    path = write(tmp_path / "stored", stored, config=config(2, tie_word_embeddings=True))
    out = read(surgery.apply(made, [path], tmp_path / "both").out)
    assert torch.equal(out["lm_head.weight"], 2 * tensors["model.embed_tokens.weight"])
    assert torch.equal(out["model.embed_tokens.weight"], out["lm_head.weight"])


def test_layers_that_predict_tokens_come_after_the_last(tmp_path: Path) -> None:
    """A multi-token-prediction layer has the number after the decoder's; it keeps that place."""
    tensors = llama(layers=3)
    predictor = {name.replace(".layers.0.", ".layers.3."): 2 * t for name, t in tensors.items() if ".layers.0." in name}
    predictor["model.layers.3.eh_proj.weight"] = torch.ones(8, 16, dtype=torch.bfloat16)
    path = write(tmp_path / "sft", {**tensors, **predictor}, config=config(3))
    for number, layers in enumerate(([0, 1, 1, 2, 2], [1])):
        made = {"name": "r", "models": ["sft"], "slices": [{"sft": layers}]}
        out = read(surgery.apply(made, [path], tmp_path / f"out{number}").out)
        expected = stacked(tensors, *((tensors, i) for i in layers))
        expected |= {name.replace(".layers.3.", f".layers.{len(layers)}."): t for name, t in predictor.items()}
        assert equal(out, expected)


def test_other_stacks_stay(tmp_path: Path) -> None:
    """The vision tower of `start` is copied, and its config stays."""
    tower = {f"vision_tower.encoder.layers.{i}.mlp.fc1.weight": torch.full((4, 4), float(i)) for i in range(3)}
    text = {name: tensor.float() for name, tensor in llama(layers=3).items()}
    nested = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 3}}
    path = write(tmp_path / "sft", {**tower, **text}, config=nested)
    out = surgery.apply({"name": "r", "models": ["sft"], "slices": [{"sft": "0-1"}]}, [path], tmp_path / "out").out
    assert equal(read(out), {**tower, **stacked(text, (text, 0), (text, 1))})
    found = json.loads((out / "config.json").read_text())
    assert found == {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 3}}


def test_the_config_changes_in_layers_and_dtype_together(tmp_path: Path) -> None:
    """With `output.dtype` both arrive in the one file; lists follow their layers."""
    kinds = config(3, layer_types=["a", "b", "c"])
    path = write(tmp_path / "sft", llama(layers=3), config=kinds)
    made = {"name": "r", "models": ["sft"], "slices": [{"sft": [2, 2]}], "output": {"dtype": "float32"}}
    out = surgery.apply(made, [path], tmp_path / "out").out
    expected = {**kinds, "num_hidden_layers": 2, "layer_types": ["c", "c"], "torch_dtype": "float32"}
    assert json.loads((out / "config.json").read_text()) == expected
    assert {tensor.dtype for tensor in read(out).values()} == {torch.float32}


def test_a_stack_without_a_prefix(tmp_path: Path) -> None:
    """Layers called `0`, `1` and so on are renumbered as well."""
    tensors = {f"{i}.mlp.up_proj.weight": torch.full((4, 4), float(i)) for i in range(12)}
    path = write(tmp_path / "sft", tensors, config=config(12))
    out = surgery.apply({"name": "r", "models": ["sft"], "slices": [{"sft": [11, 1]}]}, [path], tmp_path / "out").out
    part = "mlp.up_proj.weight"
    assert equal(read(out), {f"0.{part}": tensors[f"11.{part}"], f"1.{part}": tensors[f"1.{part}"]})


# --- how it is laid out and told ---------------------------------------------------------------------------------


def sizes(out: Path) -> list[int]:
    """Bytes of tensors in each file."""
    found: dict[str, int] = {}
    for info in surgery.inspect(out).tensors.values():
        found[info.file] = found.get(info.file, 0) + info.nbytes
    return list(found.values())


def test_files_are_no_larger_than_those_of_start(tmp_path: Path) -> None:
    """`keep`: a sharded start makes shards of at most its largest, with an index; one file stays one file."""
    sharded, single = llama(layers=4), llama(layers=6, seed=3)
    paths = [
        write(tmp_path / "base", sharded, shards=3, config=config(4)),
        write(tmp_path / "sft", single, config=config(6)),
    ]
    slices = [{"base": "all"}, {"sft": "all"}]
    expected = stacked(sharded, *((sharded, i) for i in range(4)), *((single, i) for i in range(6)))
    out = surgery.apply(recipe(slices), paths, tmp_path / "out").out
    assert len(sizes(out)) > 3
    assert max(sizes(out)) <= max(sizes(paths[0]))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert index["weight_map"].keys() == expected.keys()
    assert equal(read(out), expected)
    out = surgery.apply(recipe(slices, start="sft"), paths, tmp_path / "one").out
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    out = surgery.apply(recipe(slices, output={"shard_size": "2KB"}), paths, tmp_path / "small").out
    assert max(sizes(out)) <= 2000
    assert equal(read(out), expected)


def test_an_index_counts_the_outputs_parameters(tmp_path: Path) -> None:
    """Where the index of `start` has a number of parameters, it is that of the output."""
    tensors = llama(layers=2)
    path = write(tmp_path / "sft", tensors, shards=2, config=config(2))
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": {"total_parameters": 5}}))
    out = surgery.apply({"name": "r", "models": ["sft"], "slices": [{"sft": 1}]}, [path], tmp_path / "out").out
    expected = stacked(tensors, (tensors, 1))
    metadata = json.loads((out / "model.safetensors.index.json").read_text())["metadata"]
    assert metadata["total_parameters"] == sum(tensor.numel() for tensor in expected.values())


def test_manifest_card_and_plan_tell_where_layers_come_from(pair: Pair, surgery_command: Run) -> None:
    """By role and name in the manifest and in `--json`, as a table of slices for people."""
    mean = {"op": "linear", "models": ["base", "sft"], "select": {"layers": 1}}
    made = recipe([{"base": "0-1", "sft": [3, 3]}, {"sft": "4-5"}], mean)
    out = pair.apply(made)
    written = {entry["name"]: entry for entry in json.loads((out / "surgery.json").read_text())["tensors"]}
    path = pair.directory / "recipe.yaml"
    path.write_text(load(made).text)
    planned = json.loads(surgery_command("plan", path, *pair.paths, "--json")[1])
    part = "mlp.up_proj.weight"
    for tensors in (written, {entry["name"]: entry for entry in planned["tensors"]}):
        assert tensors[f"model.layers.0.{part}"]["read"] == ["base"]
        assert tensors[f"model.layers.1.{part}"]["read"] == ["base", f"sft model.layers.3.{part}"]
        assert tensors[f"model.layers.3.{part}"]["read"] == [f"sft model.layers.5.{part}"]
    assert planned["layers"] == {"0-1": "base 0-1, sft [3, 3]", "2-3": "sft 4-5"}
    assert "| 0-1 | base 0-1, sft [3, 3] |\n| 2-3 | sft 4-5 |" in (out / "README.md").read_text()
    lines = [line.rstrip() for line in surgery_command("plan", path, *pair.paths)[1].splitlines()]
    at = lines.index("layers  of")
    assert lines[at + 1 : at + 3] == ["0-1     base 0-1, sft [3, 3]", "2-3     sft 4-5"]


def test_hashes(pair: Pair) -> None:
    """Other slices are other work; a recipe without slices has the canonical form that it had before there were any."""
    one, other = (surgery.plan(recipe([{"base": 0}, {"sft": number}]), pair.paths) for number in (0, 1))
    assert one != other
    plain = load({"name": "x", "models": ["sft"], "steps": [{"op": "truncate_rank", "rank": 4}]})
    assert plain.canonical().keys() == {"name", "models", "start", "steps", "output"}


def test_an_interrupted_stack_goes_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed run has finished is used, and the bytes are those of one run."""
    made = recipe([{"base": "0-2"}, {"sft": "1-3"}])
    whole = read(surgery.apply(made, pair.paths, pair.directory / "whole").out)
    from surgery.writer import Writer

    finish, count = Writer.finish, iter(range(100))

    def failing(self: Writer, *arguments: Any) -> None:
        if next(count) == 20:
            raise KeyboardInterrupt
        finish(self, *arguments)

    monkeypatch.setattr(Writer, "finish", failing)
    with pytest.raises(KeyboardInterrupt):
        pair.apply(made, workers=1)
    monkeypatch.undo()
    applied = surgery.apply(made, pair.paths, pair.directory / "out", workers=1)
    assert applied.resumed == 20
    assert equal(read(applied.out), whole)


def test_variants_with_and_without_slices_in_one_pass(pair: Pair) -> None:
    """A tensor's name stands for other layers in each of them; every output is that of `apply`."""
    step = {"op": "restore_directions", "from": "base", "head": "50%"}
    made = [
        recipe([{"sft": "2-5", "base": "0-3"}], step),
        recipe([{"sft": "0-1", "base": [3, 3]}, {"base": 0}], {**step, "select": {"layers": "0-1"}}, start="sft"),
        {**recipe([], step), "start": "base", "steps": [{"op": "truncate_rank", "rank": 2}], "models": ["base"]},
    ]
    del made[2]["slices"]
    outs = [pair.directory / f"out{i}" for i in range(3)]
    variants = [surgery.Variant(each, out) for each, out in zip(made, outs, strict=True)]
    surgery.apply_all(variants, dict(zip(("base", "sft"), pair.paths, strict=True)))
    for i, each in enumerate(made):
        alone = surgery.apply(each, pair.paths[: len(each["models"])], pair.directory / f"alone{i}").out
        assert equal(read(outs[i]), read(alone))


# --- what is wrong -----------------------------------------------------------------------------------------------


def test_faults_of_slices_and_of_steps_are_told_at_once_with_lines(pair: Pair) -> None:
    """Ranges beyond the stack, lengths, empty ranges, and steps that read a role where it has no layers."""
    path = pair.directory / "recipe.yaml"
    path.write_text(
        "name: r\nmodels: [base, sft]\nslices:\n  - {base: 0-3, sft: 1-3}\n  - {sft: 4-6}\n  - {base: first 0}\n"
        "  - {sft: 4-5}\nsteps:\n  - {op: linear, models: [base, sft], select: {layers: all}}\n"
        "  - {op: truncate_rank, rank: 2, select: {tensors: [mpl]}}\n"
    )
    lengths, beyond, empty, gap, other_gap, select = pair.faults(path)
    assert lengths == f"{path}:4 slices[0]: `base: 0-3` makes 4 layers and `sft: 1-3` 3; expected as many of each role"
    assert beyond == f"{path}:5 slices[1]: `sft: 4-6` names layer 6; `sft` has layers 0-5"
    assert empty == f"{path}:6 slices[2]: `base: first 0` selects no layer"
    assert gap == (
        f"{path}:9 steps[0]: `slices[1]` names no layers of `base`, which does not have all with the numbers of "
        f"`sft: 4-6`; name there those that are meant, `base: ...` (27 tensors in all)"
    )
    assert other_gap.startswith(f"{path}:9 steps[0]: `slices[3]` names no layers of `base`")
    assert select.startswith(f"{path}:10 steps[1]: select: `mpl` matches no tensor")


def test_a_step_that_reads_a_role_where_it_has_no_layers(pair: Pair) -> None:
    """Each slice is told of once; the remedy works; a step that does not select these layers may read the role."""
    slices = [{"base": "0-1"}, {"sft": "3-4"}, {"sft": 5}]
    mean = {"op": "linear", "models": ["base", "sft"]}
    assert [message.split("`")[1] for message in pair.faults(recipe(slices, mean))] == ["slices[1]", "slices[2]"]
    surgery.plan(recipe([*slices[:1], {"sft": "3-4", "base": "2-3"}, {"sft": 5, "base": 0}], mean), pair.paths)
    surgery.plan(recipe(slices, {**mean, "select": {"layers": "0-1"}}), pair.paths)


def written(directory: Path, ours: Tensors, theirs: Tensors, **configs: Any) -> Pair:
    """Another pair."""
    made = Pair(directory)
    made.paths = [
        write(directory / "b", ours, config=configs.get("base", config(2))),
        write(directory / "s", theirs, config=configs.get("sft", config(2))),
    ]
    return made


def renamed(tensors: Tensors) -> Tensors:
    return {name.replace("model.layers", "transformer.h"): tensor for name, tensor in tensors.items()}


def without_layers(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if ".layers." not in name}


SLICES = [{"base": "0-1"}, {"sft": "0-1"}]


def test_models_without_a_decoder_or_with_another(tmp_path: Path) -> None:
    """Nothing else is said: without layers there is nothing to stack."""
    tensors = llama(layers=2)
    cases: Iterable[tuple[Tensors, Tensors, list[str]]] = [
        (tensors, without_layers(tensors), ["slices[1]: no text decoder is recognised in `sft`"]),
        (without_layers(tensors), tensors, ["slices[0]: no text decoder is recognised in `base`"]),
        (
            tensors,
            renamed(tensors),
            ["slices[1]: the layers are `model.layers` in `base` and `transformer.h` in `sft`"],
        ),
    ]
    for number, (base, sft, expected) in enumerate(cases):
        found = written(tmp_path / str(number), base, sft).faults(recipe(SLICES))
        assert [message.partition(";")[0].removeprefix("recipe ") for message in found] == expected


def test_a_decoder_that_is_none_any_more(tmp_path: Path) -> None:
    """Where nothing but its size says which stack is the decoder, it must stay the largest."""
    tensors = {f"{stack}.{i}.mlp.fc1.weight": torch.ones(4, 4) for stack, n in (("a", 3), ("b", 2)) for i in range(n)}
    path = write(tmp_path / "sft", tensors, config=config(3))
    made = {"name": "r", "models": ["sft"], "slices": [{"sft": 0}]}
    with pytest.raises(PlanError, match=r"slices: `a` with 1 layer is not recognised as the text decoder any more"):
        surgery.plan(made, [path])
    surgery.plan({**made, "slices": [{"sft": [0, 0, 0]}]}, [path])


def test_layers_that_do_not_fit_into_the_config_of_start(tmp_path: Path) -> None:
    """Shapes, dtypes, missing and further tensors of another model's layers, each kind told once with its number."""
    base = llama(layers=2)
    sft = near(base)
    for i in range(2):
        layer = f"model.layers.{i}."
        sft[f"{layer}mlp.up_proj.weight"] = torch.ones(24, 8, dtype=torch.bfloat16)
        sft[f"{layer}input_layernorm.weight"] = torch.ones(8)
        sft[f"{layer}self_attn.q_norm.weight"] = torch.ones(8, dtype=torch.bfloat16)
        del sft[f"{layer}self_attn.o_proj.weight"]
    pair = written(tmp_path, base, sft)
    found = pair.faults(recipe(SLICES))
    assert len(found) == 4
    assert all(message.startswith("recipe slices[1]: ") and "(2 tensors in all)" in message for message in found)
    text = "\n".join(found)
    assert "`model.layers.0.self_attn.o_proj.weight` is not in `sft`, and all layers of `base` have its like" in text
    assert "`model.layers.0.mlp.up_proj.weight` is [24, 8] in `sft`, and in the layers of `base` [16, 8]" in text
    assert "`model.layers.0.input_layernorm.weight` is F32 in `sft`, and in the layers of `base` BF16" in text
    assert "`model.layers.0.self_attn.q_norm.weight` is in `sft`, and no layer of `base` has its like" in text
    assert len(pair.faults(recipe(SLICES, output={"dtype": "float32"}))) == 3


def test_layers_of_one_model_may_differ(tmp_path: Path) -> None:
    """Dense and sparse layers, attention and Mamba: another model's layer need only be like one of `start`."""
    base = llama(layers=3)
    base["model.layers.1.mlp.up_proj.weight"] = torch.ones(40, 8, dtype=torch.bfloat16)
    base["model.layers.2.mixer.in_proj.weight"] = torch.ones(8, 8, dtype=torch.bfloat16)
    pair = written(tmp_path, base, near(base), base=config(3), sft=config(3))
    surgery.plan(recipe([{"base": "0-2"}, {"sft": [2, 1, 0]}]), pair.paths)


def test_faults_of_the_config_are_told_with_the_others(tmp_path: Path) -> None:
    """A config that does not name the number of layers, and a list that only one has."""
    tensors = llama(layers=2)
    unnamed = written(tmp_path / "unnamed", tensors, tensors, base={**LLAMA_CONFIG, "layer_types": [1, 2]})
    beyond = [{"base": "0-1"}, {"sft": "0-2"}]
    count, lists, length = sorted(unnamed.faults(recipe(beyond)), key=lambda message: "slices[1]" in message)
    assert {count.split(":")[0], lists.split(":")[0]} == {"recipe slices"}
    assert any("does not name the number of layers" in message for message in (count, lists))
    assert any("`layer_types` in the config of `base`" in message for message in (count, lists))
    assert "`sft: 0-2` names layer 2" in length


def test_a_model_without_a_config_is_remarked(tmp_path: Path) -> None:
    """A single file lends no config, so that none can be wrong."""
    path = write(tmp_path / "sft", llama(layers=2), config=config(2)) / "model.safetensors"
    made = surgery.plan({"name": "r", "models": ["sft"], "slices": [{"sft": [0, 1, 1]}]}, [path])
    assert made.remarks == ("`sft` has no `config.json`; write one for 3 layers, or loaders fail",)


@pytest.mark.parametrize(
    ("layers", "steps", "told"),
    [(4, [], True), (6, [], True), (8, [], False), (4, [{"op": "linear", "models": ["base"], "weights": [2]}], False)],
)
def test_slices_that_drop_nothing_are_remarked(
    tmp_path: Path, layers: int, steps: list[dict[str, Any]], told: bool
) -> None:
    """Where percentages are rounded so that every layer stays, and nothing is edited, the plan says so."""
    base = write(tmp_path / "base", llama(layers=layers), config=config(layers))
    made = {
        "name": "drop", "models": ["base"], "slices": [{"base": "first 75%"}, {"base": "last 1"}], "steps": steps,
    }  # fmt: skip
    remarks = surgery.plan(made, [base]).remarks
    assert any(f"keep all {layers} layers of `base`" in remark for remark in remarks) == told
    if not steps:
        bundled = surgery.plan("drop-deep-layers", [base]).remarks
        assert any("nothing is dropped" in remark for remark in bundled) == told


@pytest.mark.parametrize(
    ("layers", "first", "last", "twice"),
    [
        (1, "first 75%", "last 1", "1 layer of 1"), (2, "first 75%", "last 1", "1 layer of 2"),
        (3, "first 50%", "last 50%", "1 layer of 3"), (2, "first 100%", "last 2", "2 layers of 2"),
        (4, "first 75%", "last 1", ""), (4, "first 50%", "last 50%", ""), (4, "first 60%", "last 60%", ""),
        (4, "first 3", "last 3", ""), (2, "0-1", "last 1", ""),
    ],
)  # fmt: skip
def test_shares_do_not_make_a_model_deeper(tmp_path: Path, layers: int, first: str, last: str, twice: str) -> None:
    """Percentages that are rounded to more than all of a few layers are refused; repetition that is meant is not."""
    base = write(tmp_path / "base", llama(layers=layers), config=config(layers))
    made = {"name": "drop", "models": ["base"], "slices": [{"base": first}, {"base": last}]}
    if not twice:
        surgery.plan(made, [base])
        return
    with pytest.raises(PlanError, match=f"{twice} in common") as caught:
        surgery.plan(made, [base])
    assert f"`base: {last}`" in str(caught.value)
    if first == "first 75%":
        with pytest.raises(PlanError, match="make the model deeper"):
            surgery.plan("drop-deep-layers", [base])


def test_layers_that_share_keys_follow(tmp_path: Path) -> None:
    """The number of layers without keys of their own follows the slices; what that changes is told, or refused."""
    shared = {"num_kv_shared_layers": 2, "layer_types": ["a", "b", "a", "a", "b", "a"]}
    base = write(tmp_path / "base", llama(layers=6), config=config(6, **shared))
    made = {"name": "drop", "models": ["base"], "slices": [{"base": "0-2"}, {"base": "5"}]}
    plan = surgery.plan(made, [base])
    assert plan.remarks == (
        "`num_kv_shared_layers`: 1 layer takes keys and values of another layer than before; check it",
    )
    out = surgery.apply(made, [base], tmp_path / "out").out
    found = json.loads((out / "config.json").read_text())
    assert (found["num_hidden_layers"], found["num_kv_shared_layers"]) == (4, 1)
    assert found["layer_types"] == ["a", "b", "a", "a"]
    with pytest.raises(PlanError, match="a layer without keys of its own comes before one that has some"):
        surgery.plan({**made, "slices": [{"base": "0-4"}, {"base": "3"}]}, [base])


def test_tensors_with_a_part_for_each_layer_are_refused(tmp_path: Path) -> None:
    """Gemma 3n's are outside the layers, and as wide as there are layers: they fit no other number or order."""
    text = {"text_config": {"num_hidden_layers": 4, "hidden_size_per_layer_input": 8}}
    base = write(tmp_path / "base", llama(layers=4), config={**config(4), **text})
    made = {"name": "drop", "models": ["base"], "slices": [{"base": "0-2"}]}
    with pytest.raises(PlanError, match=r"`hidden_size_per_layer_input: 8` .* which slices cannot take apart"):
        surgery.plan(made, [base])
    surgery.plan({**made, "slices": [{"base": "0-3"}]}, [base])


def test_settings_by_number_are_remarked(tmp_path: Path) -> None:
    """What the config says of layers by their numbers is not rewritten, and the plan says so."""
    skipped = {"modules_to_not_convert": ["lm_head", "model.layers.1.mlp"]}
    more = {"first_k_dense_replace": 1, "quantization_config": skipped, "auto_map": {"a": "my.model.layers.1"}}
    path = write(tmp_path / "sft", llama(layers=2), config=config(2, **more))
    (remark,) = surgery.plan({"name": "r", "models": ["sft"], "slices": [{"sft": 1}]}, [path]).remarks
    assert remark == (
        "what the config says of layers by their numbers stays as it is: `first_k_dense_replace`, "
        "`quantization_config`; check it"
    )


def test_more_layers_than_any_model_has(pair: Pair) -> None:
    """A slip in a range, or malice, does not make a plan of a million layers."""
    (message,) = pair.faults(recipe([{"base": ["0-3"] * 3000}]) | {"models": ["base", "sft"], "start": "sft"})
    assert message == "recipe slices: found more than 10,000 layers in all; expected fewer"
    found = pair.faults(recipe([{"base": "0-999999", "sft": "all"}]))
    assert "`base: 0-999999` names layer" in found[1]
