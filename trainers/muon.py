"""Muon for the matrices inside a network's layers and AdamW for all else, as one optimiser.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum of a matrix; its step
is scaled to the root mean square that AdamW's has (Liu et al. 2025, arXiv 2502.16982), so that the two
share a learning rate and a weight decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95  # torch's default, and that of both sources


class MuonWithAdamW(torch.optim.Optimizer):
    """Takes the steps of `torch.optim.Muon` for `layer_matrices`, and of `torch.optim.AdamW` for other parameters.

    Of these, embeddings and the output head are decayed as well, vectors (norms, biases) are not. The state of both is
    this optimiser's own, and so are the groups, whose `lr` a scheduler sets.
    """

    def __init__(
        self, network: nn.Module, learning_rate: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        inner = layer_matrices(network)
        known = {id(parameter) for parameter in inner}
        others = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
        self._muon = torch.optim.Muon(
            inner, lr=learning_rate, weight_decay=weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of both; the closure, if there is one, is called once before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices, *others = self.param_groups
        for optimizer, groups in ((self._muon, [matrices]), (self._adamw, others)):
            # handed over anew each time, for loading a state replaces them
            optimizer.param_groups, optimizer.state = groups, self.state
            optimizer.step()  # type: ignore[no-untyped-call]  # Muon's is not typed
        return loss


def layer_matrices(network: nn.Module) -> list[nn.Parameter]:
    """The trainable 2-D parameters that are neither input embeddings nor output head, in the network's order."""
    ends = (network.get_input_embeddings(), network.get_output_embeddings())  # type: ignore[operator]
    outer = {id(parameter) for end in ends if end is not None for parameter in end.parameters()}
    return [p for p in network.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in outer]
