"""An exponential moving average of a network's weights, which is measured and saved in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

FILE = "average.pt"  # of a state of training


class WeightAverage:
    """`average <- decay * average + (1 - decay) * weights` after each optimiser step.

    It begins with the weights that training begins with, not with zero, so that there is no bias to correct: after t
    steps these still have the weight decay^t. In the weights' own dtype, which for our trainers is float32; buffers are
    the network's (`torch.optim.swa_utils`, which has the formula, would copy the whole network for the sake of them).
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self._weights = list(network.parameters())  # tied ones once
        self._averages = [weight.detach().clone() for weight in self._weights]
        self._take = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch's is not typed

    def update(self) -> None:
        """Take the present weights into the average."""
        self._take(self._averages, self._weights, None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Where the network has the averages for weights; its own are back afterwards, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def save(self, state: Path) -> None:
        """Write the average into a state of training."""
        torch.save(self._averages, state / FILE)

    def load(self, state: Path) -> None:
        """Go on with the average of a state."""
        saved: list[torch.Tensor] = torch.load(state / FILE, map_location="cpu", weights_only=True)
        for average, found in zip(self._averages, saved, strict=True):
            average.copy_(found)

    def _swap(self) -> None:
        """Exchange what lies behind the tensors; nothing is copied."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.data, average.data = average.data, weight.data
