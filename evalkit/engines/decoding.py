"""What is asked of a decoder network: answers to a batch of prompts, and log-probabilities of given answers.

Sequences are lists of token ids, a network is a causal language model of transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch

from evalkit.engines.base import TokenScore

Ids = Sequence[int]

POSITIONS = 128  # of which the log-probabilities are in float32 at a time: 80 MB with 151,936 tokens


class NotFiniteError(ArithmeticError):
    """The network gave NaN or infinity for a next token."""


# Not inference mode, in which autocast keeps no converted weights (pytorch's pull request 165068) but converts them all
# for each token: SmolLM2-135M, in float32 under bfloat16 autocast on a CPU, then takes 8 times as long.
@torch.no_grad()
def decode(
    network: Any,
    prompts: Sequence[Ids],
    max_tokens: int,
    choose: Callable[[torch.Tensor, Sequence[int]], list[int]],
    ended: Callable[[int, Sequence[int]], bool],
) -> list[list[int]]:
    """Generate up to `max_tokens` after each of the prompts, none of which is empty.

    `choose(logits, rows)` gives the next tokens of the rows that are not ended, by logits (rows, vocabulary) in
    float32; `ended(row, answer)` is asked after each token. The prompts are padded on the left, so that all next
    tokens stand in the last column; what the padding holds has no influence, hence any token will do. A row that has
    ended leaves the batch and its cache. Raises NotFiniteError.
    """
    from transformers import DynamicCache

    accepted = _accepted(network)
    width = max(map(len, prompts))
    rows = list(range(len(prompts)))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=network.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=network.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=network.config)
    answers: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_tokens):
        inputs = {"position_ids": positions, "logits_to_keep": 1, "past_key_values": cache, "cache_params": cache}
        given = {name: value for name, value in inputs.items() if name in accepted}
        if "cache_params" not in accepted or ids.shape[1] > 1:  # Mamba's own cache holds no padding: no mask later
            given["attention_mask"] = mask
        logits = network(input_ids=ids, use_cache=True, **given).logits[:, -1].float()
        _check_finite(logits)
        chosen = choose(logits, rows)
        for row, token in zip(rows, chosen, strict=True):
            answers[row].append(token)
        going = [i for i, row in enumerate(rows) if not ended(row, answers[row])]
        if not going:
            break
        if len(going) < len(rows):
            rows, chosen = [rows[i] for i in going], [chosen[i] for i in going]
            kept = torch.tensor(going, device=network.device)
            mask, positions = mask[kept], positions[kept]
            cache.reorder_cache(kept)
        ids = torch.tensor(chosen, device=network.device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return answers


def greedy(logits: torch.Tensor, rows: Sequence[int]) -> list[int]:  # noqa: ARG001, called like the draws
    """The likeliest token of each row; of equals, the first."""
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    return chosen


def draws(temperature: float, seeds: Sequence[int]) -> Callable[[torch.Tensor, Sequence[int]], list[int]]:
    """Choose by softmax(logits / temperature), each row by its own stream of random numbers.

    A token takes one number u of its row, and is the first whose cumulative probability exceeds u. In float64, where
    the sum over a vocabulary loses nothing; `random.Random` gives the same numbers on every device. A temperature
    near 0 overflows nothing, since the largest logit is taken off first.
    """
    streams = [Random(seed) for seed in seeds]

    def choose(logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
        if logits.device.type == "mps":  # which has no float64
            logits = logits.cpu()
        exact = logits.double()
        weights = ((exact - exact.amax(dim=-1, keepdim=True)) / temperature).exp().cumsum(dim=-1)
        total = weights[:, -1:].contiguous()
        u = torch.tensor([[streams[row].random()] for row in rows], dtype=torch.float64, device=logits.device)
        # u < 1, and so u * total < total, except where the product rounds up to it
        index = torch.searchsorted(weights, u * total, right=True)
        last = torch.searchsorted(weights, total)  # the last token of any probability
        chosen: list[int] = torch.minimum(index, last)[:, 0].tolist()
        return chosen

    return choose


@torch.inference_mode()
def likelihoods(network: Any, pairs: Sequence[tuple[Ids, Ids]]) -> list[list[TokenScore]]:
    """Log-probabilities of answers after prompts, neither of which is empty.

    The sequences are padded on the right, where no token of theirs looks. Logits are made from the first answer's
    beginning on, and put into float32 `POSITIONS` at a time. Raises NotFiniteError.
    """
    accepted = _accepted(network)
    sequences = [[*prompt, *answer] for prompt, answer in pairs]
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences], device=network.device)
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences], device=network.device)
    first = min(len(prompt) for prompt, _ in pairs) - 1  # the logits of a position are those of the next token
    positions = torch.arange(width, device=network.device)
    inputs = {"position_ids": positions.expand(len(pairs), -1), "logits_to_keep": positions[first : width - 1]}
    given = {name: value for name, value in inputs.items() if name in accepted}
    logits = network(input_ids=ids, attention_mask=mask, use_cache=False, **given).logits
    if "logits_to_keep" not in accepted:
        logits = logits[:, first : width - 1]
    scores = []
    for i, (prompt, answer) in enumerate(pairs):
        start = len(prompt) - 1 - first
        target = ids[i, len(prompt) : len(prompt) + len(answer)]
        scores.append(_scores(logits[i, start : start + len(answer)], target))
    return scores


def _scores(logits: torch.Tensor, target: torch.Tensor) -> list[TokenScore]:
    """Scores of the tokens `target` (n) by logits (n, vocabulary)."""
    scores: list[TokenScore] = []
    for part, tokens in zip(torch.split(logits, POSITIONS), torch.split(target, POSITIONS), strict=True):
        exact = part.float()
        _check_finite(exact)
        found = exact.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].tolist()
        best = (exact.argmax(dim=-1) == tokens).tolist()
        scores += [TokenScore(logprob, likeliest) for logprob, likeliest in zip(found, best, strict=True)]
    return scores


def _check_finite(logits: torch.Tensor) -> None:
    """The largest logit of each row tells: it is NaN if any is; minus infinity is a token that is ruled out."""
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise NotFiniteError


def _accepted(network: Any) -> frozenset[str]:
    """The inputs that the network knows: some have no positions (ALiBi's), some call their cache by another name."""
    return frozenset(inspect.signature(network.forward).parameters)
