"""`surgery.extract_lora`: the adapter is the closest one, its report is true, and base + adapter is the model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import surgery
from surgery.checkpoint import open_checkpoint
from surgery.errors import PlanError
from surgery.extraction.choice import Aim, choose
from surgery.extraction.factors import smallest_rank
from surgery.quantity import Quantity
from tests.adapters.peft import PREFIX, factors, merged, write_adapter
from tests.adapters.test_input import loaded
from tests.commands import Run
from tests.pairs import files, llama, near, read, write
from tests.tiny_tokenizers import save, words

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and its fine-tuned model, in float32."""
    base = llama(dtype=torch.float32)
    return write(tmp_path / "base", base), write(tmp_path / "tuned", near(base), 2)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter."""
    return load_file(out / "adapter_model.safetensors")


def config(out: Path) -> dict[str, Any]:
    """The configuration of an adapter."""
    found: dict[str, Any] = json.loads((out / "adapter_config.json").read_text())
    return found


def read_as_peft(base: Path, out: Path) -> Mapping[str, torch.Tensor]:
    """Base and adapter merged as PEFT does, in float64."""
    return merged(read(base), weights(out), **config(out))


def test_factors_are_the_leading_triplets(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """B A is the best approximation of W - b of that rank, by numpy's SVD; energy and error are its own."""
    found = surgery.extract_lora(*pair, tmp_path / "lora", rank=2)
    base, tuned, adapter = read(pair[0]), read(pair[1]), weights(tmp_path / "lora")
    rows = {row.name: row for row in found.rows}
    for name in (f"{LAYER}.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"):
        D = tuned[name].double() - base[name].double()
        U, S, Vh = torch.linalg.svd(D, full_matrices=False)
        best = U[:, :2] * S[:2] @ Vh[:2]
        module = name.removesuffix(".weight")
        A, B = (adapter[f"{PREFIX}{module}.lora_{factor}.weight"].double() for factor in "AB")
        torch.testing.assert_close(B @ A, best, rtol=0, atol=1e-6)
        torch.testing.assert_close(A @ A.T, torch.diag(S[:2]), rtol=0, atol=1e-6)
        torch.testing.assert_close(B.T @ B, torch.diag(S[:2]), rtol=0, atol=1e-6)
        error = float(torch.linalg.norm(D - best) / torch.linalg.norm(D))
        assert rows[name].error == pytest.approx(error, rel=1e-5)
        assert rows[name].energy == pytest.approx(float((S[:2] ** 2).sum() / (S**2).sum()), rel=1e-5)
        assert rows[name].relative == pytest.approx(
            float(torch.linalg.norm(D) / torch.linalg.norm(base[name])), rel=1e-5
        )


def test_full_rank_gives_the_model_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """With all directions and everything else stored whole, base + adapter is the model, here and in PEFT."""
    found = surgery.extract_lora(*pair, tmp_path / "lora", rank="all", save=["norm", "embedding"])
    tuned, as_peft = read(pair[1]), read_as_peft(pair[0], tmp_path / "lora")
    for name in tuned:
        torch.testing.assert_close(as_peft[name], tuned[name].double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loaded(f"{pair[0]}+{tmp_path / 'lora'}", name), tuned[name], rtol=1e-5, atol=1e-6)
    assert found.error < 1e-6
    assert found.error_in_all < 1e-6
    assert {row.kept for row in found.rows} == {"factors", "whole"}
    saved = config(tmp_path / "lora")["modules_to_save"]
    assert "model.norm" in saved
    assert "model.embed_tokens" in saved
    assert torch.equal(weights(tmp_path / "lora")[f"{PREFIX}model.norm.weight"], tuned["model.norm.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_round_trip_is_as_near_as_the_report_says(tmp_path: Path, dtype: str) -> None:
    """For bf16 models: base + adapter, before the last rounding, differs from the model by the error that is told."""
    base = llama(width=32)
    pair = write(tmp_path / "base", base), write(tmp_path / "tuned", near(base))
    found = surgery.extract_lora(*pair, tmp_path / "lora", rank="25%", dtype=dtype)
    change = left = 0.0
    for row in found.rows:
        if row.kept == "factors":
            b, W = base[row.name].float(), near(base)[row.name].float()
            rest = torch.linalg.norm(W - loaded(f"{pair[0]}+{tmp_path / 'lora'}", row.name)) ** 2
            D = torch.linalg.norm(W - b) ** 2
            assert row.error == pytest.approx(float((rest / D).sqrt()), rel=1e-4)
            change, left = change + float(D), left + float(rest)
    assert found.error == pytest.approx((left / change) ** 0.5, rel=1e-4)
    assert found.energy == pytest.approx(1 - left / change, rel=1e-4)
    assert found.energy_in_all < found.energy


def test_a_low_rank_change_is_found_again(tmp_path: Path) -> None:
    """What an adapter of rank 3 did is an adapter of rank 3, and all of it; MODEL may be base+adapter itself."""
    base = llama(dtype=torch.float32, width=16)
    path = write(tmp_path / "base", base)
    lora = write_adapter(tmp_path / "given", factors(base))
    found = surgery.extract_lora(path, f"{path}+{lora}", tmp_path / "lora", error=1e-3)
    assert {row.rank for row in found.rows} == {3}
    assert len(found.rows) == 4
    assert found.error < 1e-5
    assert config(tmp_path / "lora")["target_modules"] == ["down_proj", "q_proj"]
    assert config(tmp_path / "lora")["r"] == 3
    assert config(tmp_path / "lora")["lora_alpha"] == 3


def test_an_error_chooses_the_smallest_rank(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Each matrix has an error of at most what was asked for, and with one rank less a larger one."""
    found = surgery.extract_lora(*pair, tmp_path / "lora", error=0.4)
    base, tuned = read(pair[0]), read(pair[1])
    matrices = [row for row in found.rows if row.kept == "factors"]
    assert len({row.rank for row in matrices}) > 1
    for row in matrices:
        S = torch.linalg.svdvals(tuned[row.name].double() - base[row.name].double())
        rest = [float((S[r:] ** 2).sum().sqrt() / (S**2).sum().sqrt()) for r in range(len(S) + 1)]
        assert row.error <= 0.4
        assert row.rank == next(r for r in range(1, len(S) + 1) if rest[r] <= 0.4)
    settings = config(tmp_path / "lora")
    ranks = {row.name.removesuffix(".weight"): row.rank for row in matrices}
    assert settings["rank_pattern"] == {name: rank for name, rank in ranks.items() if rank != settings["r"]}
    assert settings["alpha_pattern"] == settings["rank_pattern"]
    for row in matrices:
        expected = read_as_peft(pair[0], tmp_path / "lora")[row.name]
        torch.testing.assert_close(
            loaded(f"{pair[0]}+{tmp_path / 'lora'}", row.name).double(), expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("values", "error", "rank"),
    [
        ([3, 0, 0], 0.1, 1),
        ([4, 3], 0.61, 1),
        ([4, 3], 0.59, 2),
        ([1, 1, 1, 1], 0.75, 2),
        ([1, 1, 1, 1], 0.70, 3),
        ([1e-200, 0], 0.5, 1),
    ],
)
def test_smallest_rank(values: list[float], error: float, rank: int) -> None:
    """At least 1; what is left out is at most the error's part of the norm."""
    assert smallest_rank(torch.tensor(values, dtype=torch.float64), error) == rank


def test_configuration_and_names(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """What PEFT needs is there: short names where they mean these modules alone, else whole ones."""
    surgery.extract_lora(*pair, tmp_path / "all", rank=2)
    settings = config(tmp_path / "all")
    linear = ["down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert settings["target_modules"] == linear
    for key, value in {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2, "bias": "none"}.items():
        assert settings[key] == value
    assert settings["fan_in_fan_out"] is False
    assert settings["modules_to_save"] is None
    assert settings["base_model_name_or_path"] == str(pair[0])
    surgery.extract_lora(*pair, tmp_path / "first", rank=2, layers="0", tensors=["attention"])
    assert config(tmp_path / "first")["target_modules"] == sorted(
        f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"
    )
    assert {key.rsplit(".", 2)[-2] for key in weights(tmp_path / "first")} == {"lora_A", "lora_B"}


def test_ranks_beyond_a_matrix(tmp_path: Path) -> None:
    """A count is at most the directions of a matrix, whose rank then stands in the pattern."""
    base = llama(dtype=torch.float32)
    pair = write(tmp_path / "base", base), write(tmp_path / "tuned", near(base))
    surgery.extract_lora(*pair, tmp_path / "lora", rank=8)
    narrow = {f"model.layers.{i}.self_attn.{name}_proj": 4 for i in range(2) for name in "kv"}
    assert config(tmp_path / "lora")["rank_pattern"] == narrow


def test_what_is_left_out_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Norms and embeddings that differ are rows with nothing kept, a remark, and count in all."""
    found = surgery.extract_lora(*pair, tmp_path / "lora", rank=2)
    left = [row for row in found.rows if row.kept == "nothing"]
    assert {row.name for row in left} == {name for name in read(pair[0]) if "norm" in name or "embed" in name}
    assert all(row.energy == 0 and row.error == 1 for row in left)
    assert any("since only weights of linear layers have factors; `--save" in remark for remark in found.remarks)


def test_the_manifest_holds_the_report(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """`surgery verify` reads it; the inputs and every figure are in it."""
    found = surgery.extract_lora(*pair, tmp_path / "lora", rank=2)
    manifest = json.loads((tmp_path / "lora/surgery.json").read_text())
    assert manifest["inputs"]["base"]["source"] == str(pair[0])
    assert manifest["report"]["tensors"] == found.json()["tensors"]
    assert manifest["report"]["energy"] == found.energy
    verified = surgery.verify(tmp_path / "lora")
    assert verified.tensors == len(weights(tmp_path / "lora"))
    content = bytearray((tmp_path / "lora/adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "lora/adapter_model.safetensors").write_bytes(content)
    with pytest.raises(surgery.VerifyError):
        surgery.verify(tmp_path / "lora")


def test_bytes_do_not_depend_on_workers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """One worker and several write the same files."""
    surgery.extract_lora(*pair, tmp_path / "one", rank=2, workers=1, save="norm")
    surgery.extract_lora(*pair, tmp_path / "many", rank=2, workers=4, save="norm", memory=2_000_000_000)
    assert files(tmp_path / "one") == files(tmp_path / "many")
    assert set(files(tmp_path / "one")) == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "surgery.json",
    }  # fmt: skip


class Interrupt(Exception):
    """Whatever ends a run."""


class Progress:
    """Interrupts a run after so many tensors; counts those that were there."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.count, self.resumed = after, 0, 0

    def begin(self, choice: object) -> None: ...

    def finished(self, target: object, resumed: bool) -> None:  # noqa: ARG002 - the protocol's
        """A tensor is done."""
        self.count += 1
        self.resumed += resumed
        if self.count == self.after:
            raise Interrupt

    def stopping(self) -> None: ...


def test_an_interrupted_run_goes_on(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """OUT does not exist until it is complete; the same command goes on to the same bytes; others are refused."""
    surgery.extract_lora(*pair, tmp_path / "whole", rank=2, save=["norm"])
    out = tmp_path / "lora"
    with pytest.raises(Interrupt):
        surgery.extract_lora(*pair, out, rank=2, save=["norm"], workers=1, progress=Progress(5))
    assert not out.exists()
    with pytest.raises(surgery.OutputError, match="another extraction"):
        surgery.extract_lora(*pair, out, rank=3, save=["norm"])
    damaged = next(iter((tmp_path / "lora.partial/parts").iterdir()))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    progress = Progress()
    surgery.extract_lora(*pair, out, rank=2, save=["norm"], progress=progress)
    assert progress.resumed == 4
    assert files(out) == files(tmp_path / "whole")
    assert not list(tmp_path.glob("lora.partial*"))


def test_outputs_are_refused_and_replaced(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """An existing OUT, one that touches an input, and one that is something else."""
    out = tmp_path / "lora"
    surgery.extract_lora(*pair, out, rank=2)
    with pytest.raises(surgery.OutputError, match="exists already"):
        surgery.extract_lora(*pair, out, rank=1)
    surgery.extract_lora(*pair, out, rank=1, overwrite=True)
    assert config(out)["r"] == 1
    with pytest.raises(surgery.OutputError, match="input `base`"):
        surgery.extract_lora(*pair, pair[0] / "lora", rank=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(surgery.OutputError, match="holds no adapter"):
        surgery.extract_lora(*pair, tmp_path / "mine", rank=1, overwrite=True)


def test_equal_models(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """There is nothing for an adapter to hold, and nothing is left behind."""
    with pytest.raises(surgery.PlanError, match="no selected matrix differs"):
        surgery.extract_lora(pair[0], pair[0], tmp_path / "lora", rank=2)
    assert not list(tmp_path.glob("lora*"))


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    """Shapes, quantised weights and architectures with transposed weights are refused; what one lacks is told."""
    base = llama(dtype=torch.float32)
    tuned = near(base)
    path = write(tmp_path / "base", base)
    more = {**tuned, "model.extra.weight": torch.ones(2, 2)}
    del more["lm_head.weight"]
    found = surgery.extract_lora(path, write(tmp_path / "more", more), tmp_path / "lora", rank=1)
    assert any("`model.extra.weight`: left out, since the base lacks" in remark for remark in found.remarks)
    assert any("`lm_head.weight`: left out, since the model lacks" in remark for remark in found.remarks)
    wide = {**tuned, "lm_head.weight": torch.ones(21, 8)}
    with pytest.raises(surgery.PlanError, match=r"`lm_head.weight`: is \[20, 8\] in the base and \[21, 8\]"):
        surgery.extract_lora(path, write(tmp_path / "wide", wide), tmp_path / "x", rank=1)
    packed = {**tuned, "lm_head.weight": torch.ones(20, 8, dtype=torch.int8)}
    with pytest.raises(surgery.PlanError, match="stored as I8: dequantise"):
        surgery.extract_lora(path, write(tmp_path / "packed", packed), tmp_path / "x", rank=1)
    gpt2 = write(tmp_path / "gpt2", base, config={"model_type": "gpt2"})
    with pytest.raises(surgery.PlanError, match="store their weights transposed"):
        surgery.extract_lora(gpt2, write(tmp_path / "t", tuned), tmp_path / "x", rank=1)
    bad = {**tuned, "model.norm.weight": torch.full((8,), torch.nan)}
    with pytest.raises(surgery.NumericalError, match=r"`model.norm.weight`: .*NaN"):
        surgery.extract_lora(path, write(tmp_path / "bad", bad), tmp_path / "x", rank=1)
    bad = {**tuned, f"{LAYER}.weight": torch.full((8, 8), torch.inf)}
    with pytest.raises(surgery.NumericalError, match=f"`{LAYER}.weight`: the difference"):
        surgery.extract_lora(path, write(tmp_path / "worse", bad), tmp_path / "y", rank=1)


def test_biases_of_matrices_are_not_stored_whole(tmp_path: Path) -> None:
    """PEFT cannot give a module factors and store it whole; the bias is told, and with its weight saved it may."""
    base = llama(dtype=torch.float32)
    base[f"{LAYER}.bias"] = torch.randn(8)
    pair = write(tmp_path / "base", base), write(tmp_path / "tuned", near(base))
    found = surgery.extract_lora(*pair, tmp_path / "lora", rank=1, save=["*.bias"])
    assert {row.name: row.kept for row in found.rows}[f"{LAYER}.bias"] == "nothing"
    assert any("cannot be stored whole" in remark for remark in found.remarks)
    found = surgery.extract_lora(*pair, tmp_path / "both", rank=1, save=[f"{LAYER}.*"])
    assert {row.name: row.kept for row in found.rows}[f"{LAYER}.weight"] == "whole"
    assert config(tmp_path / "both")["modules_to_save"] == [LAYER]
    assert LAYER not in config(tmp_path / "both")["target_modules"]
    assert "q_proj" not in config(tmp_path / "both")["target_modules"]
    for name in (f"{LAYER}.weight", f"{LAYER}.bias"):
        assert torch.equal(loaded(f"{pair[0]}+{tmp_path / 'both'}", name), near(base)[name])


TIED = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}


def _tied(tmp_path: Path, *, stored: bool) -> tuple[Path, Path]:
    """Two models whose head is their embedding, in files with or without it."""
    paths = []
    base = llama(dtype=torch.float32)
    for name, tensors in (("base", base), ("tuned", near(base))):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if not stored:
            del tensors["lm_head.weight"]
        paths.append(write(tmp_path / name, tensors, config=TIED))
    return paths[0], paths[1]


@pytest.mark.parametrize("stored", [False, True], ids=["head not stored", "head stored"])
def test_tied_embeddings_are_stored_whole(tmp_path: Path, stored: bool) -> None:
    """They are stored as PEFT wants them, under both names, and stay one matrix; without `--save` they are left out."""
    pair = _tied(tmp_path, stored=stored)
    found = surgery.extract_lora(*pair, tmp_path / "lora", rank="all", save=["embedding"])
    adapter, tuned = weights(tmp_path / "lora"), read(pair[1])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(adapter[f"{PREFIX}{name}"], tuned["model.embed_tokens.weight"])
    settings = config(tmp_path / "lora")
    assert settings["ensure_weight_tying"] is True
    assert settings["modules_to_save"] == ["model.embed_tokens", "lm_head"]
    assert "lm_head" not in settings["target_modules"]
    assert {row.name: row.kept for row in found.rows}["model.embed_tokens.weight"] == "whole"
    for name in tuned:
        if "norm" not in name:
            torch.testing.assert_close(
                loaded(f"{pair[0]}+{tmp_path / 'lora'}", name), tuned[name], rtol=1e-5, atol=1e-6
            )
    assert surgery.verify(tmp_path / "lora").tensors == len(adapter)
    plain = surgery.extract_lora(*pair, tmp_path / "plain", rank=1)
    assert not any("lm_head" in row.name for row in plain.rows)
    assert "ensure_weight_tying" not in config(tmp_path / "plain")
    loaded(f"{pair[0]}+{tmp_path / 'plain'}", "model.norm.weight")


def test_layers_and_tokens_must_be_those_of_the_base(tmp_path: Path) -> None:
    """Another number of layers, and ids that mean other tokens where rows of the head are subtracted, are faults."""
    base, deep = write(tmp_path / "base", llama(layers=2)), write(tmp_path / "deep", llama(layers=3, seed=1))
    with pytest.raises(PlanError, match=r"`model\.layers` has 2 layers in the base and 3 in the model; expected two"):
        surgery.extract_lora(base, deep, tmp_path / "lora", rank=1)
    other = write(tmp_path / "other", llama(layers=2, seed=1))
    entries = ["?", *"abcdefghijklmnopqrs"]
    save(words(entries), base)
    save(words([*entries[:3], "d", "c", *entries[5:]], ["<new>"]), other)
    with pytest.raises(PlanError, match=r"2 token ids do not mean the same: 3 is `c` in the base and `d`"):
        surgery.extract_lora(base, other, tmp_path / "lora", rank=1)
    assert surgery.extract_lora(base, other, tmp_path / "lora", rank=1, exclude="lm_head").rows


def test_leftovers_of_a_model_that_was_tied_are_not_used(tmp_path: Path) -> None:
    """What is stored of the embedding depends on the head, so an interrupted run of the other kind is refused."""
    pair = _tied(tmp_path, stored=False)
    hashes = set()
    for tied in (True, False):
        for path in pair:
            (path / "config.json").write_text(json.dumps({**TIED, "tie_word_embeddings": tied}))
        inputs = [open_checkpoint(path) for path in pair]
        hashes.add(choose(*inputs, Aim(rank=Quantity(count=1)), "float32", save=["embedding"]).hash)
    assert len(hashes) == 2


def test_tied_embeddings_that_cannot_be_stored(tmp_path: Path) -> None:
    """Where the model's head is its own, or the name of the head is not known, the embedding is left out and told."""
    base, tuned = _tied(tmp_path, stored=False)
    own = {**read(tuned), "lm_head.weight": torch.randn(20, 8)}
    untied = write(tmp_path / "untied", own, config={**TIED, "tie_word_embeddings": False})
    found = surgery.extract_lora(base, untied, tmp_path / "lora", rank=1, save=["embedding"])
    assert any("one matrix in the base and two in the model" in remark for remark in found.remarks)
    assert config(tmp_path / "lora")["modules_to_save"] is None
    named = []
    for path in (base, tuned):
        tensors = {name.replace("embed_tokens", "wte"): W for name, W in read(path).items()}
        named.append(write(tmp_path / f"{path.name}-named", tensors, config=TIED))
    found = surgery.extract_lora(*named, tmp_path / "other", rank=1, save=["embedding"])
    assert any("of which PEFT wants the name" in remark for remark in found.remarks)
    assert config(tmp_path / "other")["modules_to_save"] is None


def test_a_disk_without_room_is_told(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the adapter's size must be free: by ranks that is known before anything is computed, by an error after."""
    whole = surgery.extract_lora(*pair, tmp_path / "whole", rank=1)

    def room(nbytes: int) -> None:
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=nbytes, f_frsize=1))

    progress = Progress()
    room(4 * whole.parameters)
    with pytest.raises(surgery.OutputError, match=r"takes twice its size, [\d,]+ bytes, [\d,]+ more than are free"):
        surgery.extract_lora(*pair, tmp_path / "lora", rank=1, progress=progress)
    assert progress.count == 0
    room(-(10**9))
    with pytest.raises(surgery.OutputError, match="takes twice its size"):
        surgery.extract_lora(*pair, tmp_path / "error", error=0.5, progress=progress)
    assert progress.count > 0
    room(2 * whole.nbytes)
    surgery.extract_lora(*pair, tmp_path / "lora", rank=1)
    assert files(tmp_path / "lora") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"rank": 2, "error": 0.1},
        {"rank": 0},
        {"rank": "2.5"},
        {"error": 0},
        {"error": 1.5},
        {"rank": 1, "dtype": "int8"},
    ],
    ids=str,
)
def test_arguments(pair: tuple[Path, Path], tmp_path: Path, arguments: dict[str, Any]) -> None:
    """What means nothing is a ValueError."""
    with pytest.raises(ValueError, match="expected"):
        surgery.extract_lora(*pair, tmp_path / "lora", **arguments)


def test_too_little_memory_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The largest matrix is named, with the bound that would do."""
    with pytest.raises(surgery.PlanError, match="raise `--memory` to at least"):
        surgery.extract_lora(*pair, tmp_path / "lora", rank=1, memory=1000)


def test_the_command(pair: tuple[Path, Path], tmp_path: Path, surgery_command: Run) -> None:
    """A table of every tensor that differs and the sum of all; `--json` has the same; wrong usage is exit code 2."""
    code, out, _ = surgery_command("extract-lora", *pair, tmp_path / "lora", "--rank", "2", "--save", "norm")
    assert code == 0
    assert re.search(rf"{LAYER}\.weight +factors +2 +0\.\d+ +\d\d\.\d\d % +0\.\d+", out)
    assert f"use it with its base: {pair[0]}+{tmp_path / 'lora'}" in out
    code, out, _ = surgery_command("extract-lora", *pair, tmp_path / "more", "--error", "0.3", "--json")
    assert code == 0
    assert json.loads(out)["error"] <= 0.3
    for wrong in ([], ["--rank", "1", "--error", "0.1"], ["--rank", "0"], ["--error", "1"]):
        assert surgery_command("extract-lora", *pair, tmp_path / "x", *wrong)[0] == 2
    code, out, _ = surgery_command("inspect", f"{pair[0]}+{tmp_path / 'lora'}")
    assert "rank 2" in out


def test_kills_leave_the_old_or_the_new(tmp_path: Path) -> None:
    """Killed in the middle of any system call, OUT is the older adapter, the new one, or absent; then it goes on."""
    base = llama(layers=1, dtype=torch.float32)
    pair = write(tmp_path / "base", base), write(tmp_path / "tuned", near(base))
    what: dict[str, Any] = {"tensors": ["attention", "norm"], "save": "norm"}
    surgery.extract_lora(*pair, tmp_path / "whole", rank=2, workers=1, **what)
    surgery.extract_lora(*pair, tmp_path / "out", rank=1)
    arguments = [*map(str, pair), str(tmp_path / "whole"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.extraction.killed", *arguments],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_a_full_disk_is_told(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to do, and the same command goes on."""

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr("surgery.extraction.output._append", full)
        with pytest.raises(surgery.OutputError, match="make room, and run the same command again"):
            surgery.extract_lora(*pair, tmp_path / "lora", rank=1)
    progress = Progress()
    surgery.extract_lora(*pair, tmp_path / "lora", rank=1, progress=progress)
    assert progress.resumed == progress.count
