"""A language model with a value head, and what PPO asks of it: log-probabilities of responses, values of prompts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainers.errors import TrainingError

Ids = Sequence[int]

POSITIONS = 512  # of all rows, of which logits are in float32 at a time: 311 MB with 151,936 tokens


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left and responses on the right, so that all responses begin in the same column.

    `ids` and `mask` (B, P + R) int64, the latter 1 for tokens and 0 for padding; `positions` (B, P + R) int64 count the
    tokens of a row from 0; `responses` is R, the number of columns after the prompts.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    responses: int

    @property
    def response_mask(self) -> torch.Tensor:
        """Which response columns hold tokens: (B, R) bool."""
        return self.mask[:, -self.responses :].bool()


class Outputs(NamedTuple):
    """Of each response's tokens the log-probabilities (B, R), in nats, and of each prompt the value (B,).

    `entropy` (B, R), in nats, is that of the distribution that each token was drawn from. At least float32, and 0
    where there is no token.
    """

    logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor | None


class ValueHead(nn.Module):
    """What a turn's return will be, by the hidden state (..., h) of its prompt: h -> h/4 -> h/8 -> 1, ReLU between.

    In float32 whatever the autocast. Its last layer begins at 0, and so do all values: an untrained guess would only
    add noise to the first advantages. (arXiv 2501.17161 begins with random ones.)
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        widths = [hidden, max(1, hidden // 4), max(1, hidden // 8)]
        self.first = nn.Linear(widths[0], widths[1], dtype=torch.float32)
        self.second = nn.Linear(widths[1], widths[2], dtype=torch.float32)
        self.last = nn.Linear(widths[2], 1, dtype=torch.float32)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values (...) of hidden states (..., h)."""
        with torch.autocast(hidden.device.type, enabled=False):
            inner = self.first(hidden.to(self.first.weight.dtype)).relu()
            value: torch.Tensor = self.last(self.second(inner).relu())[..., 0]
            return value


class Policy(nn.Module):
    """A causal language model of transformers and a value head that shares all of it.

    The head reads the hidden state of a prompt's last token, as it comes to the output embeddings, and its gradient
    flows on into the network (arXiv 2501.17161). Raises TrainingError for a network without output embeddings.
    """

    def __init__(self, network: Any, value_head: ValueHead) -> None:
        super().__init__()
        self.network = network
        self.value_head = value_head
        self._accepted = frozenset(inspect.signature(network.forward).parameters)
        # By these FSDP divides the network layer by layer, as it would without the value head.
        self._no_split_modules = getattr(network, "_no_split_modules", None)
        if network.get_output_embeddings() is None:
            raise _unknown(network)

    def forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        responses: int,
        temperature: float,
        entropy: bool = False,
    ) -> Outputs:
        """Log-probabilities and values of the `Batch` with these members.

        They are log-probabilities of softmax(logits / temperature), the distribution that the responses were drawn
        from, so that ratios are those of the policy that acted. Here we depart from the code of arXiv 2501.17161,
        which to our knowledge takes softmax(logits) while it draws at temperature 0.2.
        """
        # Nobody asks what follows the last column: it need not go through the network.
        optional = {"position_ids": positions[:, :-1], "logits_to_keep": responses}
        given = {name: value for name, value in optional.items() if name in self._accepted}
        seen: list[torch.Tensor] = []
        head = self.network.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.network(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False, **given).logits
        finally:
            hook.remove()
        if len(seen) != 1:
            raise _unknown(self.network)
        # Where only some positions were kept these are the last ones as well.
        values = self.value_head(seen[0][:, -responses])
        there = mask[:, -responses:].bool()
        found = _token_figures(logits[:, -responses:], ids[:, -responses:], temperature, entropy)
        logprobs, entropies = (each if each is None else each.masked_fill(~there, 0.0) for each in found)
        assert logprobs is not None
        return Outputs(logprobs, values, entropies)


def collate(prompts: Sequence[Ids], responses: Sequence[Ids], pad: int, device: torch.device | str) -> Batch:
    """The batch of some prompts, none of them empty, and a response to each; `pad` is any token that the model has.

    A response may be empty. Where all are, there is one column for them, of padding.
    """
    assert all(prompts), "a value is that of a prompt's last token"
    before = max(map(len, prompts))
    after = max(1, *map(len, responses))
    ids, mask = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        left, right = before - len(prompt), after - len(response)
        ids.append([pad] * left + [*prompt, *response] + [pad] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(response)) + [0] * right)
    masks = torch.tensor(mask, device=device)
    return Batch(torch.tensor(ids, device=device), masks, (masks.cumsum(dim=1) - 1).clamp(min=0), after)


def disable_dropout(network: nn.Module) -> None:
    """Take all randomness out of a network in training mode: it would make ratios differ from 1 at the start.

    Sets to 0 what is a probability of dropout or a router's jitter by its name, in modules and, since some networks
    read it from there at each step, in their configurations; so a checkpoint saved later says that it has none.
    """
    configs = {id(module.config): module.config for module in network.modules() if hasattr(module, "config")}
    for owner in (*network.modules(), *configs.values()):
        dropout = isinstance(owner, nn.modules.dropout._DropoutNd)
        for name, value in list(vars(owner).items()):
            if type(value) is float and ((dropout and name == "p") or re.search("drop|jitter", name)):
                setattr(owner, name, 0.0)


def _token_figures(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities and entropies (B, R) of `tokens` (B, R) by `logits` (B, R, V).

    In float32 a piece at a time, and anew for the gradient: of a large vocabulary the whole would take several times
    the memory of the logits.
    """
    columns = max(1, POSITIONS // len(logits))
    pieces = [
        checkpoint(_piece, part, chosen, temperature, entropy, use_reentrant=False, preserve_rng_state=False)
        for part, chosen in zip(torch.split(logits, columns, 1), torch.split(tokens, columns, 1), strict=True)
    ]
    logprobs = torch.cat([logprob for logprob, _ in pieces], dim=1)
    return logprobs, torch.cat([each for _, each in pieces], dim=1) if entropy else None


def _piece(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = (exact / temperature).log_softmax(dim=-1)
    chosen = logprobs.gather(-1, tokens[..., None])[..., 0]
    if not entropy:
        return chosen, None
    possible = logprobs.masked_fill(logprobs.isneginf(), 0.0)  # a token that is ruled out adds 0, not 0 times infinity
    return chosen, -(logprobs.exp() * possible).sum(dim=-1)


def _unknown(network: Any) -> TrainingError:
    return TrainingError(
        f"`{type(network).__name__}` does not make its logits by one module, its output embeddings, from whose input "
        "values are learned; train another architecture"
    )
