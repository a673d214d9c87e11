"""Answers by a network that is being trained in this process: nothing is loaded, nothing copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from evalkit.engines.base import Model
from evalkit.engines.transformers import TransformersEngine
from evalkit.rendering import Renderer

T = TypeVar("T")


class LiveEngine(TransformersEngine):
    """An engine over a causal language model of transformers, whose weights it takes as they are when it is asked.

    `batch_size` is as of TransformersEngine. The network is in evaluation mode while a batch is answered or scored,
    and as it was before whenever the engine is not at work. Under bfloat16 autocast the network's arithmetic is in
    bfloat16, and tokens are chosen in float32 as ever.
    """

    name: ClassVar[str] = "live"

    _not_finite: ClassVar[str] = (
        "training has destroyed it, if it was whole at first: lower `optimizer.learning_rate`, or set `precision` to "
        "`float32`"
    )
    _no_memory: ClassVar[str] = "lower `rollout.max_tokens`, or train on more devices"

    def __init__(self, network: Any, renderer: Renderer, batch_size: int | None = None) -> None:
        super().__init__({"batch_size": batch_size})
        self._hold(renderer, network, network.device.type)

    def load(self, model: Model, context: int) -> None:
        """Nothing: the network is there."""

    def close(self) -> None:
        """Nothing: the network is not the engine's."""

    def _batches(self, lengths: Mapping[int, int], work: Callable[[Sequence[int]], list[T]]) -> Iterator[tuple[int, T]]:
        def evaluated(batch: Sequence[int]) -> list[T]:
            with _evaluating(self._network):
                return work(batch)

        yield from super()._batches(lengths, evaluated)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module is in the mode it was in."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
        # The converted weights that autocast has kept are outdated after the next optimiser step, and in older versions
        # of torch have no gradient: what comes under the same autocast must not find them.
        torch.clear_autocast_cache()
