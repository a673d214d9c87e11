"""Small networks compute in one thread, and leave the number as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evalkit.engines.base import Model, Request, Sampling
from evalkit.engines.threads import SMALL, suit_threads, threads_kept
from evalkit.engines.transformers import TransformersEngine
from tests.tiny_models import save_tiny


@pytest.fixture(autouse=True)
def _three() -> Iterator[None]:
    """Three threads at first."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "parameters", "threads"), [("cpu", SMALL - 1, 1), ("cpu", SMALL, 3), ("cuda", SMALL - 1, 3)]
)
def test_small_ones_on_a_cpu(device: str, parameters: int, threads: int) -> None:
    """Only there, and only for as long as it is asked for."""
    network = SimpleNamespace(device=SimpleNamespace(type=device), num_parameters=lambda: parameters)
    with threads_kept():
        suit_threads(network)
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 3


def test_the_engine_answers_in_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it answers; whoever takes an answer has the threads that were there."""
    seen = []
    engine = TransformersEngine({})
    engine.load(Model("tiny", "0", save_tiny(tmp_path / "tiny")), 0)
    forward = engine._network.forward

    def watched(*args: object, **kwargs: object) -> object:
        seen.append(torch.get_num_threads())
        return forward(*args, **kwargs)

    watched.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(engine._network, "forward", watched)
    for _ in engine.generate([Request("what")], Sampling(max_tokens=2)):
        assert torch.get_num_threads() == 3
    assert set(seen) == {1}
