"""The learning half of PPO: what the policy thought of the turns that were played, and its steps away from that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence
from transformers import get_scheduler

from evalkit.draw import Draw
from trainers.config import PpoConfig
from trainers.gae import advantages, normalised
from trainers.policy import Batch, Outputs, Policy, ValueHead, collate, disable_dropout
from trainers.ppo_loss import (
    RatioStatistics,
    explained_variance,
    kl_penalty,
    policy_loss,
    value_loss,
)
from trainers.progress import Progress
from trainers.rollout import Episode, Step
from trainers.schedule import scheduler_arguments

PAD = 0  # any token: padding is masked

Judged = tuple[torch.Tensor, float, float, float]  # of a turn: log-probabilities (R,), value, KL, entropy


class NotFiniteError(ArithmeticError):
    """A gradient holds NaN or infinity."""


@dataclass(frozen=True)
class Turns:
    """The turns of an update's episodes, and what the policy that played them thought of each.

    `logprobs` holds the log-probabilities (R,) of each response's tokens; the others are (N,), float32, on the CPU.
    `kl` is that of the response from the reference, zeros without one; `entropy` the mean over a response's tokens.
    """

    steps: Sequence[Step]
    logprobs: Sequence[torch.Tensor]
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    kl: torch.Tensor
    entropy: torch.Tensor

    def figures(self) -> dict[str, float]:
        """What was played, and how good the values were."""
        return {
            "prompt_tokens": sum(len(step.prompt) for step in self.steps) / len(self.steps),
            "response_tokens": sum(len(step.response) for step in self.steps) / len(self.steps),
            "reference_kl": float(self.kl.mean()),
            "entropy": float(self.entropy.mean()),
            "explained_variance": explained_variance(self.values, self.returns),
        }


class Learner:
    """A policy, its optimiser, and the two things that it does with episodes.

    `network` is a causal language model of transformers, `reference` its frozen twin or None.
    Under several processes each holds all episodes and computes its share; gradients are summed.
    """

    def __init__(self, config: PpoConfig, network: Any, reference: Any, accelerator: Accelerator) -> None:
        self._config, self._accelerator = config, accelerator
        self.network = network
        disable_dropout(network)
        if config.gradient_checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        hidden = network.get_output_embeddings().weight.shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            policy = Policy(network, ValueHead(hidden))
        steps = config.updates * config.epochs * config.mini_batches
        rates = config.optimizer
        matrices = [parameter for parameter in policy.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in policy.parameters() if parameter.ndim <= 1]  # norms, biases: no decay
        groups = [{"params": matrices, "weight_decay": rates.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=rates.learning_rate, betas=rates.betas, eps=rates.eps)
        name, warmup, options = scheduler_arguments(rates, steps)
        self._schedule = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=options)
        if (plugin := accelerator.state.deepspeed_plugin) is not None:  # which wants it although no loader is prepared
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.micro_batch_size
            plugin.deepspeed_config["gradient_clipping"] = rates.max_grad_norm  # which it does itself, in `backward`
        self.policy, self._optimizer = accelerator.prepare(policy, optimizer)
        accelerator.register_for_checkpointing(self._schedule)
        self._rate = rates.learning_rate  # of the last step
        self._reference = None
        if reference is not None:
            disable_dropout(reference)
            self._reference = Policy(reference.requires_grad_(False), ValueHead(hidden)).to(accelerator.device).eval()

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the network by its own names; every process has to ask."""
        prefix = "network."
        found = self._accelerator.get_state_dict(self.policy)
        return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}

    def judge(self, episodes: Sequence[Episode]) -> Turns:
        """Log-probabilities, values and advantages of the turns as they were played."""
        steps = [step for episode in episodes for step in episode.steps]
        judged = self._judged(steps)
        logprobs = [each[0] for each in judged]
        values, kl, entropy = (torch.tensor([each[i] for each in judged]) for i in (1, 2, 3))
        found, at = [], 0
        for episode in episodes:
            turns = slice(at, at + len(episode.steps))
            rewards = torch.tensor(episode.rewards) - self._config.kl * kl[turns]
            found.append(advantages(rewards, values[turns], self._config.gamma, self._config.lam))
            at = turns.stop
        raw, returns = (torch.cat([pair[i] for pair in found]) for i in (0, 1))
        scaled = normalised(raw) if self._config.normalize_advantages else raw
        return Turns(steps, logprobs, values, scaled, returns, kl, entropy)

    def learn(self, turns: Turns, update: int, progress: Progress) -> dict[str, float]:
        """Take the update's optimiser steps.

        Raises NotFiniteError before a gradient that is not finite does harm; with DeepSpeed, which steps in `backward`,
        afterwards.
        """
        config = self._config
        self.policy.train()
        ratios: RatioStatistics | None = None
        losses = torch.zeros(2, device=self._accelerator.device)
        norms = []
        count = max(1, min(config.mini_batches, len(turns.steps) // self._accelerator.num_processes))
        for epoch in range(config.epochs):
            order = Draw("ppo", config.seed, update, epoch).shuffled(range(len(turns.steps)))
            for number in range(count):
                statistics, parts, norm = self._step(turns, order[number::count])
                ratios = statistics if ratios is None else ratios + statistics
                losses += parts
                norms.append(norm)
                progress.step({"kl": statistics.figures()["kl"]})
        assert ratios is not None
        policy, value = (self._accelerator.reduce(losses, reduction="sum") / len(norms)).tolist()
        return {
            **self._reduced(ratios).figures(),
            "policy_loss": policy,
            "value_loss": value,
            "grad_norm": sum(norms) / len(norms),
            "learning_rate": self._rate,
        }

    def _step(self, turns: Turns, chosen: Sequence[int]) -> tuple[RatioStatistics, torch.Tensor, float]:
        """One optimiser step over some of the turns: gradients of micro-batches add up to that of all of them."""
        config, accelerator = self._config, self._accelerator
        tokens = sum(len(turns.steps[i].response) for i in chosen)
        total: RatioStatistics | None = None
        losses = torch.zeros(2, device=accelerator.device)
        shares = self._shares(turns.steps, chosen)
        for indices in shares:
            accelerator.sync_gradients = indices is shares[-1]
            with nullcontext() if accelerator.sync_gradients else accelerator.no_sync(self.policy):
                out, policy, value, statistics = self._losses(turns, indices, len(chosen), tokens)
                loss = policy + config.value_coefficient * value
                if out.entropy is not None:
                    loss = loss - config.entropy * out.entropy.sum() / tokens
                # of the processes' gradients, whose sum is meant, the mean is taken
                accelerator.backward(loss * accelerator.num_processes)
            total = statistics if total is None else total + statistics
            losses += torch.stack([policy.detach(), value.detach()])
        norm = float(accelerator.clip_grad_norm_(self.policy.parameters(), config.optimizer.max_grad_norm))
        if not math.isfinite(norm):
            raise NotFiniteError("the gradient is not finite")
        self._rate = self._schedule.get_last_lr()[0]
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        assert total is not None
        return total, losses, norm

    def _losses(
        self, turns: Turns, indices: Sequence[int], count: int, tokens: int
    ) -> tuple[Outputs, torch.Tensor, torch.Tensor, RatioStatistics]:
        """A micro-batch's part of the losses of a minibatch with so many turns and tokens."""
        config, device = self._config, self._accelerator.device
        chosen = torch.tensor(indices)
        batch = self._batch([turns.steps[i] for i in indices])
        out = self._outputs(self.policy, batch, config.entropy > 0)
        old = pad_sequence([turns.logprobs[i] for i in indices], batch_first=True).to(device)
        policy, statistics = policy_loss(
            out.logprobs, old, batch.response_mask, turns.advantages[chosen].to(device), config.clip, config.ratio,
            count if config.ratio == "response" else tokens,
        )  # fmt: skip
        value = value_loss(
            out.values, turns.values[chosen].to(device), turns.returns[chosen].to(device),
            config.clip if config.value_clip is None else config.value_clip, count,
        )  # fmt: skip
        return out, policy, value, statistics

    @torch.no_grad()
    def _judged(self, steps: Sequence[Step]) -> list[Judged]:
        """What the policy thinks of each turn, by whichever process."""
        self.policy.eval()
        found: dict[int, Judged] = {}
        for indices in self._shares(steps, range(len(steps))):
            batch = self._batch([steps[i] for i in indices])
            out = self._outputs(self.policy, batch, entropy=True)
            mask = batch.response_mask
            kl = torch.zeros_like(out.values)
            if self._reference is not None:
                with self._accelerator.autocast():
                    kl = kl_penalty(out.logprobs, self._outputs(self._reference, batch, False).logprobs, mask)
            assert out.entropy is not None
            entropy = out.entropy.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            rows = zip(out.logprobs.cpu(), out.values.tolist(), kl.tolist(), entropy.tolist(), strict=True)
            for i, (logprobs, *figures) in zip(indices, rows, strict=True):
                found[i] = (logprobs[: len(steps[i].response)].clone(), *figures)
        if self._accelerator.num_processes > 1:
            found = dict(gather_object(list(found.items())))
        return [found[i] for i in range(len(steps))]

    def _shares(self, steps: Sequence[Step], chosen: Sequence[int]) -> list[list[int]]:
        """This process's micro-batches of turns of like length; every process has as many, and none is empty.

        Where turns are few they hold one more than `micro_batch_size` rather than be fewer in one process.
        """
        processes = self._accelerator.num_processes
        each = max(
            1, min(math.ceil(len(chosen) / (self._config.micro_batch_size * processes)), len(chosen) // processes)
        )
        ordered = sorted(chosen, key=lambda i: (-len(steps[i].prompt) - len(steps[i].response), i))
        edges = [len(ordered) * k // (each * processes) for k in range(each * processes + 1)]
        batches = [ordered[start:end] for start, end in pairwise(edges)]
        return batches[self._accelerator.process_index :: processes]

    def _batch(self, steps: Sequence[Step]) -> Batch:
        return collate(
            [step.prompt for step in steps], [step.response for step in steps], PAD, self._accelerator.device
        )

    def _outputs(self, policy: Any, batch: Batch, entropy: bool) -> Outputs:
        found: Outputs = policy(
            batch.ids, batch.mask, batch.positions, batch.responses, self._config.rollout.temperature, entropy
        )
        return found

    def _reduced(self, ratios: RatioStatistics) -> RatioStatistics:
        """The statistics of all processes together."""
        if self._accelerator.num_processes == 1:
            return ratios
        sums = self._accelerator.reduce(ratios.sums, reduction="sum")
        return RatioStatistics(sums, self._accelerator.gather(ratios.extrema[None]).amax(dim=0))
