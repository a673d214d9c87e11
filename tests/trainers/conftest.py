"""Tiny checkpoints and data for training runs, shared by all tests; nobody may write into them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Materials:
    """What a run needs: `model`, a float32 checkpoint, and files of records that share no key."""

    model: Path
    learned: Path
    id: Path
    ood: Path

    def config(self, out: Path, **changes: Any) -> dict[str, Any]:
        """A configuration of fine-tuning: five steps, the last of two sequences; `changes` replace its keys."""
        return {
            "model": str(self.model),
            "out": str(out),
            "device": "cpu",
            "precision": "float32",
            "data": {"file": str(self.learned)},
            "held_out": {"id": {"file": str(self.id)}, "ood": {"file": str(self.ood)}},
            "batch_size": 4,
            "micro_batch_size": 2,
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-7},
            "loss_every": 2,
            "save_every": 2,
            **changes,
        }


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """A tiny Llama of random weights, 18 sums to learn, five of them to measure on, and five of larger numbers."""
    from tests.tiny_models import save_tiny  # torch and transformers take seconds to import

    directory = tmp_path_factory.mktemp("materials")
    return Materials(
        save_tiny(directory / "model"),
        _sums(directory / "learned.jsonl", 0, 18),
        _sums(directory / "id.jsonl", 50, 5),
        _sums(directory / "ood.jsonl", 980, 5),
    )


def _sums(path: Path, first: int, count: int) -> Path:
    records = [{"prompt": f"{i} + {i} =", "completion": str(2 * i)} for i in range(first, first + count)]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")
    return path


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread of arithmetic, here and in processes with `alike`: sums that threads share out are rounded otherwise.

    Two would not do: once torch has been told a number, MKL takes it for small matrices as well.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alike() -> dict[str, str]:
    """The environment of a process whose sums are to be rounded as here."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def rows(out: Path) -> list[Mapping[str, Any]]:
    """The log of a run."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
