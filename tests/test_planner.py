"""Every conflict between recipe and checkpoints is found from headers, all at once, before a byte is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery.errors import PlanError
from tests.pairs import LLAMA_CONFIG, llama, near, write

Recipe = dict[str, Any]


def recipe(*steps: dict[str, Any], **keys: Any) -> Recipe:
    """A recipe over base and sft."""
    return {"name": "test", "models": ["base", "sft"], "steps": list(steps), **keys}


def restore(**keys: Any) -> dict[str, Any]:
    """A step that restores 20 % of the directions."""
    return {"op": "restore_directions", "from": "base", "head": "20%", **keys}


def linear(**keys: Any) -> dict[str, Any]:
    """A step that averages both models."""
    return {"op": "linear", "models": ["base", "sft"], **keys}


def faults(made: Recipe, base: Path, sft: Path) -> list[str]:
    """What is wrong with a plan."""
    with pytest.raises(PlanError) as caught:
        surgery.plan(made, [base, sft])
    return [str(fault) for fault in caught.value.faults]


def test_steps_follow_each_other_on_a_tensor(tmp_path: Path) -> None:
    """A tensor gets the steps that select it, in order; what resets it makes the steps before it void."""
    base = llama(layers=4)
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", near(base))]
    steps = (
        restore(),
        {"op": "truncate_rank", "rank": 4, "select": {"tensors": ["mlp"]}},
        {"op": "reset_layers", "from": "base", "select": {"layers": "first 25%"}},
        linear(models=["base", "result"], select={"tensors": ["*.1.mlp.up_proj.weight"]}),
    )
    made = surgery.plan(recipe(*steps), models)
    found = {tensor.slot.name: tensor for tensor in made.tensors}
    assert found["model.layers.0.mlp.up_proj.weight"].action == "copy"
    assert found["model.layers.0.mlp.up_proj.weight"].base.role == "base"
    assert found["model.layers.1.mlp.up_proj.weight"].steps == (0, 1, 3)
    assert found["model.layers.1.mlp.down_proj.weight"].steps == (0, 1)
    assert found["model.layers.1.self_attn.q_proj.weight"].steps == (0,)
    assert found["model.embed_tokens.weight"].action == "copy"
    assert found["model.embed_tokens.weight"].base.role == "sft"


def test_a_merge_that_ignores_the_running_tensor_does_not_read_it_twice(tmp_path: Path) -> None:
    """`linear` over base and sft reads each once, whichever is `start`."""
    base = llama(layers=1)
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", near(base))]
    made = surgery.plan(recipe(linear()), models)
    assert {tuple(source.role for source in tensor.inputs) for tensor in made.tensors} == {("base", "sft")}
    assert made.bytes_read == 2 * sum(tensor.nbytes for tensor in base.values())


def test_a_step_without_effect_is_an_error(tmp_path: Path) -> None:
    """A step whose every tensor is replaced later is a mistake, and the message says how to build on it."""
    base = llama(layers=2)
    models = (write(tmp_path / "base", base), write(tmp_path / "sft", near(base)))
    (message,) = faults(recipe(restore(), linear()), *models)
    assert "steps[0]" in message
    assert "`restore_directions` has no effect" in message
    surgery.plan(recipe(restore(), linear(models=["base", "result"])), models)


def test_each_kind_of_conflict_is_told_once(tmp_path: Path) -> None:
    """Missing tensors, shapes and dtypes of many tensors make one message each, all at once, with an example."""
    base = llama(layers=3)
    sft = near(base)
    for layer in range(3):
        sft[f"model.layers.{layer}.self_attn.q_norm.weight"] = torch.ones(4, dtype=torch.bfloat16)
        sft[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.ones((24, 8), dtype=torch.bfloat16)
        sft[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(8, dtype=torch.float32)
    found = faults(recipe(linear()), write(tmp_path / "base", base), write(tmp_path / "sft", sft))
    assert len(found) == 3
    assert all("(3 tensors in all)" in message for message in found)
    text = "\n".join(found)
    assert "`model.layers.0.self_attn.q_norm.weight` is in `sft` and not in `base`" in text
    assert "`model.layers.0.mlp.up_proj.weight` is [24, 8] in `sft` and [16, 8] in `base`" in text
    assert "is F32 in `sft` and BF16 in `base`; name the dtype of the output, `--set output.dtype=bfloat16`" in text


def test_dtypes_may_differ_once_the_output_names_its_own(tmp_path: Path) -> None:
    """The remedy that the message names works, and every tensor of the output has that dtype."""
    base = llama(layers=1)
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", llama(seed=1, layers=1, dtype=torch.float32))]
    assert len(faults(recipe(linear()), *models)) == 1
    surgery.apply(recipe(linear()), models, tmp_path / "out", settings={"output.dtype": "float16"})
    made = surgery.inspect(tmp_path / "out")
    assert {info.dtype.name for info in made.tensors.values()} == {"F16"}


def test_vocabularies_that_differ_are_not_matched_by_position(tmp_path: Path) -> None:
    """Embeddings with other row counts are a conflict that names the remedy; the remedy works."""
    models = (write(tmp_path / "base", llama(layers=1)), write(tmp_path / "sft", llama(layers=1, vocabulary=22)))
    (message,) = faults(recipe(linear()), *models)
    assert "the vocabularies differ" in message
    assert "[22, 8] in `sft` and [20, 8] in `base`" in message
    assert "exclude: [embedding, lm_head]" in message
    surgery.plan(recipe(linear(select={"exclude": ["embedding", "lm_head"]})), models)


def test_layer_counts_that_differ_are_told_as_such(tmp_path: Path) -> None:
    """Not as 20 missing tensors; also when only `base` is deeper."""
    short, long = llama(layers=2), llama(layers=3)
    (message,) = faults(recipe(restore()), write(tmp_path / "a", short), write(tmp_path / "b", long))
    assert "`model.layers` has 3 layers in `sft` and 2 in `base`" in message
    (message,) = faults(recipe(restore()), write(tmp_path / "c", long), write(tmp_path / "d", short))
    assert "`model.layers` has 2 layers in `sft` and 3 in `base`" in message


def test_tied_and_untied_heads_do_not_mix(tmp_path: Path) -> None:
    """A head tied in one model and free in the other is a conflict for embedding and head, and for nothing else."""
    tied = {**LLAMA_CONFIG, "tie_word_embeddings": True}
    base = write(tmp_path / "base", llama(layers=1, tied=True), config=tied)
    sft = write(tmp_path / "sft", llama(layers=1))
    (message,) = faults(recipe(linear()), base, sft)
    assert "tied to the embedding in `base`" in message
    assert "a matrix of its own in `sft`" in message
    surgery.plan(recipe(restore()), [base, sft])


def test_a_tied_head_is_not_written_twice(tmp_path: Path) -> None:
    """Tied models keep one matrix for both; where the start stores a copy, it is edited like the embedding."""
    tied = {**LLAMA_CONFIG, "tie_word_embeddings": True}
    base, sft = llama(layers=1, tied=True), llama(layers=1, tied=True, seed=1)
    models = [write(tmp_path / "base", base, config=tied), write(tmp_path / "sft", sft, config=tied)]
    select = {"tensors": ["embedding"]}
    made = surgery.plan(recipe(linear(select=select)), models)
    assert "lm_head.weight" not in {tensor.slot.name for tensor in made.tensors}
    copy = {**sft, "lm_head.weight": sft["model.embed_tokens.weight"].clone()}
    models[1] = write(tmp_path / "stored", copy, config=tied)
    made = surgery.plan(recipe(linear(select=select)), models)
    assert {t.slot.name for t in made.tensors if t.steps} == {"lm_head.weight", "model.embed_tokens.weight"}


def test_a_start_without_a_config_is_told(tmp_path: Path) -> None:
    """Its output is as complete as it is, and loads nowhere."""
    base = llama(layers=1)
    models = [write(tmp_path / name, base) for name in ("base", "sft")]
    assert not any("config.json" in remark for remark in surgery.plan(recipe(linear()), models).remarks)
    (models[1] / "config.json").unlink()
    assert any("has no config.json" in remark for remark in surgery.plan(recipe(linear()), models).remarks)


def test_a_plan_knows_whether_the_head_is_tied(tmp_path: Path) -> None:
    """What is random, and what differs from layer to layer, is the embedding's there, so the hash is another."""
    base = llama(layers=1)
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()
    hashes = set()
    for tied in (True, False):
        models = [
            write(tmp_path / f"{name}-{tied}", base, config={**LLAMA_CONFIG, "tie_word_embeddings": tied})
            for name in ("base", "sft")
        ]
        hashes.add(surgery.plan(recipe(linear()), models).hash)
    assert len(hashes) == 2


def test_quantised_weights_are_refused_and_masks_are_left_alone(tmp_path: Path) -> None:
    """8-bit floats, and integers of a quantised checkpoint, are conflicts; a mask of booleans is copied."""
    base = llama(layers=1)
    base["model.layers.0.self_attn.bias"] = torch.ones((4, 4), dtype=torch.bool)
    sft = near(base)
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", sft)]
    made = {tensor.slot.name: tensor for tensor in surgery.plan(recipe(linear()), models).tensors}
    assert made["model.layers.0.self_attn.bias"].action == "copy"
    sft["model.layers.0.mlp.up_proj.weight"] = torch.ones((16, 8)).to(torch.float8_e4m3fn)
    models[1] = write(tmp_path / "fp8", sft)
    (message,) = faults(recipe(linear()), *models)
    assert "`model.layers.0.mlp.up_proj.weight` of `sft` is quantised (F8_E4M3)" in message
    assert "dequantise" in message


def test_spectral_steps_leave_vectors_alone_and_say_so_if_nothing_else_is_selected(tmp_path: Path) -> None:
    """Biases and norms are outside every spectral operation."""
    base = llama(layers=2)
    base["model.layers.0.self_attn.q_proj.bias"] = torch.ones(8, dtype=torch.bfloat16)
    models = (write(tmp_path / "base", base), write(tmp_path / "sft", near(base)))
    made = {tensor.slot.name: tensor.action for tensor in surgery.plan(recipe(restore()), models).tensors}
    assert made["model.layers.0.self_attn.q_proj.bias"] == "copy"
    assert made["model.layers.0.self_attn.q_proj.weight"] == "compute"
    (message,) = faults(recipe(restore(select={"tensors": ["norm"]})), *models)
    assert "`restore_directions` applies to none of the 5 selected tensors" in message


def test_what_is_restored_whole_is_remarked(tmp_path: Path) -> None:
    """A count that exceeds a small matrix's directions restores it whole: the plan says which."""
    base = llama(layers=2)
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", near(base))]
    (remark,) = surgery.plan(recipe(restore(head=5)), models).remarks
    assert "restored whole" in remark
    assert "`model.layers.0.self_attn.k_proj.weight` and 3 more" in remark


def test_plans_are_pure_and_comparable(tmp_path: Path) -> None:
    """Equal for the same work wherever the files lie; different for other parameters, dtypes or shapes."""
    base = llama(layers=1)
    plans = []
    for place in ("here", "there"):
        models = [write(tmp_path / place / "base", base), write(tmp_path / place / "sft", near(base))]
        plans.append(surgery.plan(recipe(restore()), models))
    assert plans[0] == plans[1]
    assert hash(plans[0]) == hash(plans[1])
    assert plans[0] != surgery.plan(recipe(restore(head="40%")), models)
    assert plans[0] != surgery.plan(recipe(restore()), models, settings={"output.dtype": "float32"})
    assert len({*plans}) == 1


def test_the_number_of_models_must_be_that_of_the_roles(tmp_path: Path) -> None:
    """Too few, too many, or names that are no roles: the message lists the roles in order."""
    base = write(tmp_path / "base", llama(layers=1))
    for models in ([base], [base] * 3, {"base": base, "rl": base}, str(base)):
        with pytest.raises(PlanError, match=r"expected 2, for the roles `base`, `sft`, in this order$"):
            surgery.plan(recipe(restore()), models)


def test_a_plan_over_sparse_files_of_a_huge_model_takes_headers_only(tmp_path: Path) -> None:
    """A terabyte of sparse shards is planned without reading a tensor: no byte of the body exists."""
    shape, layers = [16384, 53248], 300
    nbytes = 2 * shape[0] * shape[1]
    for role in ("base", "sft"):
        (tmp_path / role).mkdir()
        weight_map = {}
        for layer in range(layers):
            name, file = f"model.layers.{layer}.mlp.up_proj.weight", f"model-{layer + 1:05}-of-{layers:05}.safetensors"
            header = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, nbytes]}}).encode()
            with (tmp_path / role / file).open("wb") as shard:
                shard.write(len(header).to_bytes(8, "little") + header)
                shard.truncate(8 + len(header) + nbytes)
            weight_map[name] = file
        (tmp_path / role / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    step = restore(select={"tensors": ["mlp"]})
    made = surgery.plan(recipe(step), [tmp_path / "base", tmp_path / "sft"])
    assert made.bytes_written > 500e9
    assert sum(path.stat().st_blocks for path in tmp_path.rglob("*.safetensors")) * 512 < 10e6


def test_a_copy_that_later_steps_build_on_is_no_dead_step(tmp_path: Path) -> None:
    """Reset, then truncate: the first decides what the second works on."""
    base = llama(layers=2)
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", near(base))]
    select = {"tensors": ["mlp"]}
    reset = {"op": "reset_layers", "from": "base", "select": select}
    made = surgery.plan(recipe(reset, {"op": "truncate_rank", "rank": 2, "select": select}), models)
    edited = [tensor for tensor in made.tensors if tensor.steps]
    assert {tuple(source.role for source in tensor.inputs) for tensor in edited} == {("base",)}


def test_a_copy_that_a_later_copy_covers_is_a_dead_step(tmp_path: Path) -> None:
    """From whichever role: the first has no effect."""
    base = llama(layers=2)
    models = write(tmp_path / "base", base), write(tmp_path / "sft", near(base))
    reset = {"op": "reset_layers", "from": "base"}
    steps = ({**reset, "select": {"layers": 0}}, {**reset, "select": {"layers": "all"}})
    (message,) = faults(recipe(*steps), *models)
    assert "steps[0]" in message
    assert "`reset_layers` has no effect" in message
    surgery.plan(recipe(*reversed(steps), start="sft") | {"steps": [steps[0]]}, models)


def test_what_is_left_out_is_remarked(tmp_path: Path) -> None:
    """Tensors that only another role has, and tensors whose dtype is no number to compute with."""
    base = llama(layers=2)
    sft = near(base)
    base["model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)
    for tensors in (base, sft):
        tensors["model.position_ids"] = torch.arange(4)
    remarks = surgery.plan(recipe(linear()), [write(tmp_path / "base", base), write(tmp_path / "sft", sft)]).remarks
    assert remarks == (
        "steps[0] leaves I64 tensors as they are: `model.position_ids`",
        "`base` has tensors that `sft` lacks; they are left out: `model.layers.0.self_attn.q_norm.weight`",
    )


def test_packed_weights_are_a_conflict_without_a_config_too(tmp_path: Path) -> None:
    """Averaging the scales and copying the integers would make a broken model."""
    base = llama(layers=1)
    base["model.layers.0.mlp.up_proj.weight"] = torch.ones((16, 4), dtype=torch.uint8)
    (message,) = faults(recipe(linear()), write(tmp_path / "base", base), write(tmp_path / "sft", base))
    assert "is quantised (U8)" in message


def test_a_tokenizer_of_another_vocabulary_is_a_conflict(tmp_path: Path) -> None:
    """Its token ids would lie beyond the embedding."""
    models = (write(tmp_path / "base", llama(layers=1, vocabulary=22)), write(tmp_path / "sft", llama(layers=1)))
    (message,) = faults(recipe(restore(), output={"tokenizer": "base"}), *models)
    assert "the embedding has 20 rows in `sft` and 22 in `base`" in message
    assert "output" in message.split(":")[0]


def test_stacked_biases_are_no_matrices(tmp_path: Path) -> None:
    """Experts in one 3-D tensor have 2-D biases, which stay as they are."""
    base = llama(layers=1)
    base["model.layers.0.mlp.experts.gate_up_proj"] = torch.ones((3, 8, 4))
    base["model.layers.0.mlp.experts.gate_up_proj_bias"] = torch.ones((3, 8))
    models = [write(tmp_path / "base", base), write(tmp_path / "sft", near(base))]
    actions = {tensor.slot.name: tensor.action for tensor in surgery.plan(recipe(restore()), models).tensors}
    assert actions["model.layers.0.mlp.experts.gate_up_proj"] == "compute"
    assert actions["model.layers.0.mlp.experts.gate_up_proj_bias"] == "copy"
