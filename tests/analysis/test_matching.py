"""Which matrices are compared, found from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.analysis.diff import make_matching
from surgery.analysis.matching import Matching
from surgery.errors import PlanError
from surgery.layers import LayerRange
from surgery.quantity import Quantity
from surgery.select import Select
from tests.pairs import LLAMA_CONFIG, llama, near, write

HEADS = {**LLAMA_CONFIG, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}


def pair(tmp_path: Path, change: dict[str, torch.Tensor | None] | None = None, **config: Any) -> tuple[Path, Path]:
    """A base and a tuned model, with tensors of the second replaced or (None) taken away."""
    base = llama()
    tuned = near(base)
    for name, tensor in (change or {}).items():
        if tensor is None:
            del tuned[name]
        else:
            tuned[name] = tensor
    return write(tmp_path / "base", base, config=HEADS | config), write(tmp_path / "sft", tuned, config=HEADS | config)


def ranks(matching: Matching) -> dict[str, tuple[int, ...]]:
    """The ranks of the first layer's matrices."""
    return {matrix.module: matrix.ranks for matrix in matching.matrices if matrix.layer == 0}


def test_every_matrix_of_every_part(tmp_path: Path) -> None:
    """Embedding, head and all projections, each with its place; vectors are named as left out."""
    matching = make_matching(pair(tmp_path))
    assert len(matching.matrices) == 2 * 7 + 2
    assert {(m.layer, m.module, m.group) for m in matching.matrices} >= {
        (-1, "model.embed_tokens", "embedding"),
        (-1, "lm_head", "lm_head"),
        (1, "self_attn.q_proj", "attention"),
        (0, "mlp.down_proj", "mlp"),
    }
    assert list(matching.models) == ["base", "sft"]
    assert (matching.embedding, matching.head) == ("model.embed_tokens.weight", "lm_head.weight")
    assert any("vectors" in r and "and 4 more" in r for r in matching.remarks)


def test_percentages_are_of_each_matrix(tmp_path: Path) -> None:
    """20 % of 8 is 2, of 4 is 1; the usual ranks are three, or two where only leading triplets are computed."""
    models = pair(tmp_path)
    full, quick = make_matching(models), make_matching(models, quick=True)
    assert ranks(full)["self_attn.q_proj"] == (2, 1, 4)
    assert ranks(full)["self_attn.k_proj"] == (1, 1, 2)
    assert ranks(quick)["self_attn.q_proj"] == (1, 1)
    assert {m.known for m in full.matrices if m.module == "self_attn.q_proj"} == {8}
    assert {m.known for m in quick.matrices if m.module == "self_attn.q_proj"} == {1}


def test_a_rank_that_spans_everything_is_halved_and_told(tmp_path: Path) -> None:
    """At full rank the two subspaces coincide whatever the training did, so half the directions are compared."""
    matching = make_matching(pair(tmp_path), ranks=[Quantity(count=6)])
    assert ranks(matching)["self_attn.q_proj"] == (6,)
    assert ranks(matching)["self_attn.k_proj"] == (2,)
    told = [r for r in matching.remarks if "rank 6 is all of their 4 directions" in r]
    assert told
    assert "and 3 more" in told[0]


def test_a_selection(tmp_path: Path) -> None:
    """As in a recipe; one that matches nothing is an error with the nearest match."""
    models = pair(tmp_path)
    select = Select(layers=LayerRange.parse("last 1"), tensors=("mlp",), exclude=("*.up_proj.*",))
    matching = make_matching(models, select=select)
    assert {m.name for m in matching.matrices} == {f"model.layers.1.mlp.{x}_proj.weight" for x in ("gate", "down")}
    with pytest.raises(PlanError, match="did you mean `mlp`"):
        make_matching(models, select=Select(tensors=("mpl",)))


@pytest.mark.parametrize("missing", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_what_a_model_lacks_is_left_out_and_told(tmp_path: Path, missing: str) -> None:
    """Everything else is compared."""
    models = pair(tmp_path, {missing: None}, tie_word_embeddings=False)
    matching = make_matching(models)
    assert missing not in {m.name for m in matching.matrices}
    assert any(missing in r and "`sft` lacks" in r for r in matching.remarks)


def test_embeddings_of_other_vocabularies_are_left_out(tmp_path: Path) -> None:
    """Rows are not matched by position; layers are compared all the same."""
    longer = torch.zeros(24, 8, dtype=torch.bfloat16)
    matching = make_matching(pair(tmp_path, {"model.embed_tokens.weight": longer, "lm_head.weight": longer.clone()}))
    assert {m.layer for m in matching.matrices} == {0, 1}
    assert any("and 1 more: left out, since the vocabularies differ" in r for r in matching.remarks)
    assert matching.embedding is None


def test_other_shapes_are_an_error(tmp_path: Path) -> None:
    """Two architectures cannot be compared; the first difference is told with both shapes."""
    wider = {"model.layers.0.mlp.up_proj.weight": torch.zeros(32, 8, dtype=torch.bfloat16)}
    with pytest.raises(PlanError, match=r"\[16, 8\] in `base`, \[32, 8\] in `sft`; expected checkpoints of one arch"):
        make_matching(pair(tmp_path, dict(wider)))


def test_quantised_weights_are_an_error(tmp_path: Path) -> None:
    """Packed integers mean nothing without their scales; the message says what to do, once a model."""
    packed = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(16, 8, dtype=torch.uint8) for i in (0, 1)}
    with pytest.raises(PlanError, match=r"is stored as U8.*dequantise") as caught:
        make_matching(pair(tmp_path, dict(packed)))
    assert len(caught.value.faults) == 1


def test_nothing_in_common(tmp_path: Path) -> None:
    """Models without a tensor in common are refused."""
    one, other = ({f"{name}.weight": torch.ones(4, 4)} for name in ("a.b", "c.d"))
    with pytest.raises(PlanError, match="no matrix in common"):
        make_matching([write(tmp_path / "one", one), write(tmp_path / "other", other)])


def test_dtypes_may_differ(tmp_path: Path) -> None:
    """Arithmetic is in float32 whatever is stored; float64 is met with float64."""
    base = llama()
    models = [write(tmp_path / "base", base), write(tmp_path / "wide", {k: v.double() for k, v in base.items()})]
    assert all(matrix.double for matrix in make_matching(models).matrices)


def test_experts_are_compared_one_by_one(tmp_path: Path) -> None:
    """Those of a 3-D stack and those with a number in their name; both share one module."""
    tensors = {"model.embed_tokens.weight": torch.ones(10, 8)}
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = torch.ones(3, 8, 6)
    tensors |= {f"model.layers.0.mlp.experts.{i}.up_proj.weight": torch.ones(8, 6) for i in range(2)}
    matching = make_matching([write(tmp_path / "a", tensors), write(tmp_path / "b", tensors)])
    found = {(m.module, m.expert, m.slice, m.shape) for m in matching.matrices if m.layer == 0}
    assert found == {
        *(("mlp.experts.gate_up_proj", i, i, (8, 6)) for i in range(3)),
        *(("mlp.experts.up_proj", i, 0, (8, 6)) for i in range(2)),
    }


def test_names_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    """One name for two matrices, or one that no archive can hold."""
    twice = {"a": torch.ones(2, 4, 4), "a[0]": torch.ones(4, 4)}
    with pytest.raises(PlanError, match=r"two matrices would be called `a\[0\]`"):
        make_matching([write(tmp_path / name, twice) for name in ("one", "two")])
    long = {"a" * 70_000: torch.ones(4, 4)}
    with pytest.raises(PlanError, match="has 70,000 characters"):
        make_matching([write(tmp_path / name, long) for name in ("three", "four")])


def test_memory_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """The message names the matrix and the least that would do; that much is then accepted."""
    matching = make_matching(pair(tmp_path))
    with pytest.raises(PlanError, match="raise `--memory` to at least") as caught:
        matching.check_memory(1000)
    needed = int(str(caught.value).split("at least ")[1].split(", leave")[0].replace(",", ""))
    matching.check_memory(needed)
    assert matching.peak_memory(1) == needed


def test_the_hash_tells_what_is_measured(tmp_path: Path) -> None:
    """Ranks, tensors and models count; where the checkpoints lie does not."""
    models = pair(tmp_path)
    hashes = {
        make_matching(models).hash,
        make_matching(models, quick=True).hash,
        make_matching(models, ranks=[Quantity(count=2)]).hash,
        make_matching(models, select=Select(tensors=("mlp",))).hash,
        make_matching(models[::-1]).hash,
    }
    assert len(hashes) == 5
    (tmp_path / "moved").mkdir()
    moved = [path.rename(tmp_path / "moved" / path.name) for path in models]
    assert make_matching(moved).hash in hashes


def test_value_and_output_projections_are_found(tmp_path: Path) -> None:
    """With the size of a head from the configuration; grouped queries included, and biases."""
    bias = {f"model.layers.{i}.self_attn.v_proj.bias": torch.ones(4) for i in (0, 1)}
    base = llama() | bias
    models = [write(tmp_path / name, base, config=HEADS) for name in ("a", "b")]
    matching = make_matching(models)
    assert [(a.layer, a.head_dim, len(a.bias)) for a in matching.attentions] == [(0, 2, 2), (1, 2, 2)]
    assert not any("gauge" in r for r in matching.remarks)


@pytest.mark.parametrize(
    ("extra", "config", "reason"),
    [
        ({"self_attn.attn_sub_norm.weight": (8,)}, {}, "a norm stands between"),
        ({"self_attn.q_proj.weight": (16, 8)}, {}, "gated attention"),
        ({"self_attn.g_proj.weight": (8, 8)}, {}, "a gate stands between"),
        ({}, {"hidden_size": None}, "does not tell the size of a head"),
        ({}, {"head_dim": 3}, "heads of 3 do not divide them"),
    ],
)
def test_where_there_is_no_gauge_the_reason_is_told(
    tmp_path: Path, extra: dict[str, tuple[int, ...]], config: dict[str, Any], reason: str
) -> None:
    """Whatever stands between the projections, or hides the heads, leaves the gauge out, and only that."""
    tensors = llama() | {f"model.layers.{i}.{k}": torch.ones(shape) for k, shape in extra.items() for i in (0, 1)}
    models = [write(tmp_path / name, tensors, config=HEADS | config) for name in ("a", "b")]
    matching = make_matching(models)
    assert not matching.attentions
    assert any(reason in r for r in matching.remarks)
    assert len(matching.matrices) >= 16


def test_norms_of_queries_and_keys_do_not_matter(tmp_path: Path) -> None:
    """They do not stand between values and output."""
    tensors = llama() | {f"model.layers.{i}.self_attn.q_norm.weight": torch.ones(2) for i in (0, 1)}
    models = [write(tmp_path / name, tensors, config=LLAMA_CONFIG) for name in ("a", "b")]
    assert [a.head_dim for a in make_matching(models).attentions] == [2, 2]
