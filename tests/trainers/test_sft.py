"""One step of fine-tuning against the same step written out by hand, and losses against evalkit's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalkit.digest import checkpoint_digest
from evalkit.engines import make_engine
from evalkit.engines.base import Model
from surgery.checkpoint import open_checkpoint
from tests.trainers.conftest import Materials, rows
from trainers import api, sft
from trainers.config import SftConfig
from trainers.errors import ConfigError, DataError, TrainingError
from trainers.loading import load

Batch = Sequence[Sequence[int]]  # of token ids
PAD = 0
ASSISTANT = 3  # the token that an answer follows
EPS = 1e-4  # of AdamW, which with less divides rounding errors by rounding errors


def train(config: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Train, and tell which sequences each call for gradients got."""
    seen: list[Batch] = []
    original = sft._Trainer.training_step

    def spied(self: Any, model: Any, inputs: Mapping[str, torch.Tensor], *rest: Any) -> torch.Tensor:
        seen.append([[i for i in ids if i != PAD] for ids in inputs["input_ids"].tolist()])
        result: torch.Tensor = original(self, model, inputs, *rest)
        return result

    monkeypatch.setattr(sft._Trainer, "training_step", spied)
    api.train("sft", config)
    return seen


def by_hand(model: Path, batches: Sequence[Batch], rates: Sequence[float], decay: float, norm: float) -> Any:
    """The network after a step of AdamW for each batch: the mean over all answer tokens of the batch is lowered."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},  # norms are not decayed
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=EPS)
    for batch, rate in zip(batches, rates, strict=True):
        optimizer.zero_grad()
        answers_loss(network, batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return network


def answers_loss(network: Any, batch: Batch) -> torch.Tensor:
    """The mean over all answer tokens of the batch."""
    losses = []
    for ids in batch:
        answer = ids.index(ASSISTANT) + 1
        logits = network(torch.tensor([ids])).logits[0, answer - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(ids[answer:]), reduction="none"))
    return torch.cat(losses).mean()


def furthest(network: Any, checkpoint: Path) -> float:
    """The largest difference between two weights of the same name."""
    found = load_file(checkpoint / "model.safetensors")
    expected = network.state_dict()
    assert set(found) == set(expected)
    return max(float((found[name] - expected[name]).abs().max()) for name in found)


def grouped(seen: Sequence[Batch], size: int) -> list[Batch]:
    """The sequences of each optimiser step, so many in all but the last."""
    every = [ids for batch in seen for ids in batch]
    return [every[i : i + size] for i in range(0, len(every), size)]


CASES = {
    "one step": ({"steps": 1, "micro_batch_size": 4}, {}, [1e-3]),
    "accumulated": ({"steps": 2, "micro_batch_size": 1}, {}, [1e-3, 5e-4]),
    "an epoch, its last batch smaller": (
        {"micro_batch_size": 2}, {}, [1e-3 * (1 + math.cos(math.pi * i / 5)) / 2 for i in range(5)],
    ),
    "linear, warmed up, decayed, cut": (
        {"steps": 3, "micro_batch_size": 2},
        {"schedule": "linear", "warmup": 1, "weight_decay": 0.1, "max_grad_norm": 0.05},
        [0, 1e-3, 5e-4],
    ),
    "cosine with a lowest rate": ({"steps": 2}, {"min_learning_rate": 1e-4}, [1e-3, 5.5e-4]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_steps_by_hand(case: str, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are those of cross entropy over the answers' tokens alone, AdamW and clipping, to 1e-6."""
    keys, more, rates = CASES[case]
    optimizer = {"learning_rate": 1e-3, "eps": EPS, "max_grad_norm": 1.0, "weight_decay": 0.0, **more}
    config = materials.config(tmp_path / "out", **keys, optimizer=optimizer)
    batches = grouped(train(config, monkeypatch), 4)
    expected = by_hand(materials.model, batches, rates, optimizer["weight_decay"], optimizer["max_grad_norm"])
    assert furthest(expected, tmp_path / "out" / "final") < 1e-6
    logged = [row["learning_rate"] for row in rows(tmp_path / "out") if "loss" in row]
    assert logged == pytest.approx(rates, abs=1e-12)


def test_muon_by_hand(materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of Muon for the layers and AdamW for the rest, decayed and cut.

    The moves agree to 10 % where Muon, which rounds to bfloat16 inside, makes small directions large, else to 1 %.
    """
    optimizer = {"name": "muon", "learning_rate": 1e-3, "eps": EPS, "weight_decay": 0.1, "max_grad_norm": 0.05}
    optimizer |= {"schedule": "wsd", "decay": 1}
    config = materials.config(tmp_path / "out", steps=2, micro_batch_size=4, optimizer=optimizer)
    batches = grouped(train(config, monkeypatch), 4)
    network = AutoModelForCausalLM.from_pretrained(materials.model, dtype=torch.float32).train()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    names = dict(network.named_parameters())
    layers = [p for name, p in names.items() if ".layers." in name and p.ndim == 2]
    matrices = [p for name, p in names.items() if ".layers." not in name and p.ndim == 2]
    vectors = [p for p in names.values() if p.ndim == 1]
    muon = torch.optim.Muon(layers, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=EPS)
    for batch in batches:
        network.zero_grad()
        answers_loss(network, batch).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.05)
        muon.step()
        adamw.step()
    found = load_file(tmp_path / "out" / "final" / "model.safetensors")
    for name, expected in network.state_dict().items():
        error = (found[name] - expected).norm() / (expected - start[name]).norm()
        assert error < (0.1 if ".layers." in name and expected.ndim == 2 else 0.01), name
    assert [row["learning_rate"] for row in rows(tmp_path / "out") if "loss" in row] == [1e-3, 1e-3]


def test_an_average_by_hand(materials: Materials, tmp_path: Path) -> None:
    """Checkpoints hold what a run without it has, averaged in float64 from the first weights on; training is alike."""
    for name, more in (("plain", {}), ("averaged", {"average": 0.75})):
        api.train("sft", materials.config(tmp_path / name, steps=3, save_every=1, **more))
    average = {name: tensor.double() for name, tensor in load_file(materials.model / "model.safetensors").items()}
    for step in (1, 2, 3):
        plain, found = (
            load_file(tmp_path / name / f"checkpoint-{step}" / "model.safetensors") for name in ("plain", "averaged")
        )
        assert sorted(found) == sorted(average)
        for name in average:
            average[name] = 0.75 * average[name] + 0.25 * plain[name].double()
            assert (found[name] - average[name]).abs().max() < 1e-6, name  # norms are near 1
            assert (found[name] - plain[name]).abs().max() > 1e-5, name
    learned = [[row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("plain", "averaged")]
    assert learned[0] == learned[1]


def test_an_average_is_what_is_measured(materials: Materials, tmp_path: Path) -> None:
    """Held-out losses and accuracies are those of the checkpoint, and training goes on with the weights."""
    config = materials.config(tmp_path / "out", average=0.9, steps=4, save_every=2, loss_every=1)
    api.train("sft", config)
    for step in (2, 4):
        at = tmp_path / "out" / f"checkpoint-{step}"
        api.train("sft", materials.config(tmp_path / f"at-{step}", model=str(at), steps=1, loss_every=100))
        (measured,) = (row for row in rows(tmp_path / "out") if row["step"] == step and "id_loss" in row)
        first = rows(tmp_path / f"at-{step}")[0]
        for name in ("id_loss", "ood_loss"):
            assert measured[name] == pytest.approx(first[name], abs=1e-6)


def test_an_average_of_divided_weights(materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process has all weights, one message says so before the first step."""

    def divided(_: Any, remedy: str, deed: str = "answer", stage: int = 3) -> None:
        raise TrainingError(f"{deed}, {stage}: {remedy}")

    monkeypatch.setattr(sft, "check_whole", divided)
    with pytest.raises(TrainingError, match=r"^average them, 1: leave out `average`$"):
        api.train("sft", materials.config(tmp_path / "out", average=0.9))


def test_an_epoch_is_every_sequence_once(materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an order that the seed gives, anew in each epoch, and none is cut."""
    seen = train(materials.config(tmp_path / "out", epochs=2), monkeypatch)
    every = [tuple(ids) for batch in seen for ids in batch]
    tokenizer = AutoTokenizer.from_pretrained(materials.model)
    records = [json.loads(line) for line in materials.learned.read_text().splitlines()]
    expected = {
        tuple(tokenizer(f"<user>{record['prompt']}<assistant>{record['completion']}<end>").input_ids)
        for record in records
    }
    assert len(every) == 36
    assert set(every[:18]) == set(every[18:]) == expected
    assert every[:18] != every[18:]
    assert [row["step"] for row in rows(tmp_path / "out") if "loss" in row] == [*range(1, 11)]


def test_held_out_losses_are_evalkits(materials: Materials, tmp_path: Path) -> None:
    """The mean of -log p over all answer tokens, as the engine of `surgery eval` scores the final checkpoint."""
    report = api.train("sft", materials.config(tmp_path / "out", steps=2, micro_batch_size=2))
    checkpoint = open_checkpoint(str(tmp_path / "out" / "final"))
    engine = make_engine("transformers", {"dtype": "float32"})
    engine.load(Model("final", checkpoint_digest(checkpoint), checkpoint.root), 64)
    for name, path in (("id", materials.id), ("ood", materials.ood)):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        pairs = [([{"role": "user", "content": record["prompt"]}], record["completion"]) for record in records]
        scores = [score for _, found in engine.score(pairs, end=True) for score in found]
        expected = -sum(score.logprob for score in scores) / len(scores)
        assert report.checkpoints[-1].losses[name] == pytest.approx(expected, abs=1e-6)
    engine.close()


def test_gradient_checkpointing_changes_nothing(materials: Materials, tmp_path: Path) -> None:
    """Activations that are computed twice give the same weights."""
    for name, value in (("a", False), ("b", True)):
        api.train("sft", materials.config(tmp_path / name, steps=2, gradient_checkpointing=value))
    found, expected = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("b", "a"))
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 1e-7


def test_bfloat16_keeps_float32_weights(materials: Materials, tmp_path: Path) -> None:
    """Arithmetic in bfloat16 moves the same weights about as far; what is stored has float32's digits."""
    for precision in ("float32", "bfloat16"):
        api.train("sft", materials.config(tmp_path / precision, steps=2, precision=precision, save_every=None))
    exact, rough = (rows(tmp_path / precision) for precision in ("float32", "bfloat16"))
    assert rough[-1]["ood_loss"] == pytest.approx(exact[-1]["ood_loss"], rel=0.05)
    assert rough[-1]["ood_loss"] != exact[-1]["ood_loss"]
    weights = load_file(tmp_path / "bfloat16" / "final" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.bfloat16().float())


def test_plain_text(materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `chat` no token of the template is seen."""
    seen = train(materials.config(tmp_path / "out", steps=1, chat=False), monkeypatch)
    assert not {2, ASSISTANT} & {i for batch in seen for ids in batch for i in ids}


@pytest.mark.parametrize(
    ("epochs", "steps", "batch", "expected"), [(1, None, 4, 5), (2, None, 4, 10), (1, None, 64, 1), (3, 2, 4, 2)]
)
def test_optimiser_steps(epochs: int, steps: int | None, batch: int, expected: int) -> None:
    """As many as the epochs over 18 sequences take, a smaller batch at each one's end; or as many as are asked for."""
    given = {"model": "m", "out": "o", "data": {"file": "f"}, "epochs": epochs, "steps": steps, "batch_size": batch}
    assert sft.optimiser_steps(load(SftConfig, given), 18) == expected


def test_batches_that_do_not_divide(materials: Materials, tmp_path: Path) -> None:
    """A batch that is no multiple of a micro-batch is refused before anything is trained."""
    config = materials.config(tmp_path / "out", batch_size=4, micro_batch_size=3)
    with pytest.raises(ConfigError, match=r"batch_size: found 4 with `micro_batch_size` 3 on 1 device; expected a mul"):
        api.train("sft", config)


def test_too_long(materials: Materials, tmp_path: Path) -> None:
    """Sequences are never cut: those that are too long are refused, and no directory is made."""
    with pytest.raises(DataError, match=r"data: 18 of 18 sequences are longer than `max_length` 5"):
        api.train("sft", materials.config(tmp_path / "out", max_length=5))
    assert not (tmp_path / "out").exists()
