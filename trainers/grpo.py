"""Group relative policy optimisation: TRL's trainer on episodes of ours (Shao et al. 2024, arXiv 2402.03300).

An answer's advantage is its reward less the mean of its group's, the answers to the same problem, over their standard
deviation. Where the configuration does not say otherwise the rest is TRL's default, too: the loss is a mean over all
tokens of an update (`loss_type: dapo`, arXiv 2503.14476), ratios are those of tokens, and answers that were cut off
count like others. TRL neither writes prompts nor draws answers here: it is handed the token ids of both.
"""

from __future__ import annotations

import importlib
import inspect
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer

from evalkit.errors import EngineError
from trainers.config import GrpoConfig
from trainers.errors import TrainingError
from trainers.player import Player
from trainers.policy import disable_dropout
from trainers.progress import Progress
from trainers.recorder import Recorder
from trainers.recording import RecordingTrainer, Steps, arguments
from trainers.session import Session


@contextmanager
def _without_vllm() -> Iterator[None]:
    """Let TRL believe that vLLM is not installed: its modules import it in passing, which takes many seconds."""
    requirements: Any = importlib.import_module("trl.import_utils")
    found = requirements.is_vllm_available
    requirements.is_vllm_available = lambda *_, **__: False
    try:
        yield
    finally:
        requirements.is_vllm_available = found


with _without_vllm():
    from trl import GRPOConfig as Arguments
    from trl import GRPOTrainer

_NAMES = {  # TRL's figures, and what they are called here; ratios, entropy and KL divergences are those of tokens
    "loss": "policy_loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "equal_groups",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_fraction",
    "kl": "reference_kl",
    "completions/mean_length": "response_tokens",
    "prompt_tokens": "prompt_tokens",
    "success": "success",
    "old_kl": "kl",
}


def optimise(
    config: GrpoConfig,
    batch: tuple[int, int],
    network: Any,
    tokenizer: Any,
    player: Player,
    recorder: Recorder,
    progress: Progress,
) -> None:
    """Train a network on the grades of episodes, in this process or as one of several.

    One update is `prompts` problems with `generations` answers to each, and one optimiser step over all of them an
    epoch. `batch` is as of `trainers.batches.accumulation`. Figures go to the recorder's log and checkpoints to its
    directory. Raises TrainingError, RunError and EngineError.
    """
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise TrainingError(
            f"`{config.model}`: its tokenizer has neither a token for padding nor one that ends texts; set `pad_token`"
        )
    disable_dropout(network)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        trainer = _Trainer(
            model=network,
            reward_funcs=_reward,
            args=_arguments(config, network, batch, player.tokens, recorder.session),
            processing_class=tokenizer,
            # TRL hands prompts through to the rollout untouched; these tell which problem is meant
            train_dataset=Dataset.from_dict({"prompt": list(map(str, range(config.updates * config.prompts)))}),
            rollout_func=_rollout,
        )
    _count_positions(network)
    if trainer.ref_model is not None:
        _count_positions(trainer.accelerator.unwrap_model(trainer.ref_model))
    trainer.recorder, trainer.session, trainer.unit_steps = recorder, recorder.session, config.epochs
    trainer.player, trainer.config, trainer.progress = player, config, progress
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Updates(trainer, config.success.every))
    with player.acting(network, trainer.accelerator, trainer.weights, recorder, progress):
        try:
            trainer.begin()
        except EngineError as error:
            raise TrainingError(f"update {trainer.units + 1}: {error}{recorder.last_good}") from error


def _arguments(
    config: GrpoConfig, network: Any, batch: tuple[int, int], max_tokens: int, session: Session
) -> Arguments:
    every = (config.save_every or config.updates) * config.epochs
    return Arguments(
        **arguments(config, network, session, config.updates * config.epochs, batch, every),
        steps_per_generation=batch[1],
        num_generations=config.generations,
        num_iterations=config.epochs,
        max_completion_length=max_tokens,
        temperature=config.rollout.temperature,
        beta=config.kl,
        epsilon=config.clip,
        loss_type=config.loss_type,
        scale_rewards=config.scale_rewards,
        disable_dropout=True,  # of the reference model as well
        shuffle_dataset=False,  # the order is ours
        logging_steps=config.epochs,
        use_vllm=False,  # where it is wanted, it is ours
        log_completions=False,
    )


def _rollout(prompts: list[str], trainer: _Trainer) -> dict[str, Any]:
    """What TRL asks for: prompts and answers as token ids, and what the reward function gets."""
    return trainer.played(prompts)


def _reward(graded: list[float], **_: Any) -> list[float]:
    """The rewards that came with the answers."""
    return graded


def _count_positions(network: Any) -> None:
    """Have the positions of a padded batch counted from its first tokens on, as when the answers were drawn.

    TRL leaves them to the network, and one that has learned positions (GPT-2) would count the padding.
    """
    if "position_ids" not in inspect.signature(network.forward).parameters:
        return

    def add(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("fused_lm_head"):
            kwargs["position_ids"] = (kwargs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return args, kwargs

    network.register_forward_pre_hook(add, with_kwargs=True)


class _Trainer(RecordingTrainer, GRPOTrainer):  # type: ignore[misc]  # TRL is not typed
    """TRL's trainer, but for who plays, what is logged and written, and when it gives up."""

    player: Player
    config: GrpoConfig
    progress: Progress
    unit = "update"

    def played(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The episodes of this process's prompts, of which those of a group come one after the other.

        All processes play together, so that the work is shared out evenly, and each keeps its own.
        """
        self._began = time.monotonic()
        update = self.units + 1
        assert self.state.global_step % self.unit_steps == 0, "states are written between updates"
        first = self.accelerator.process_index * len(prompts)
        share = slice(first, first + len(prompts))
        before = (update - 1) * self.config.prompts
        expected = [before + number for number in range(self.config.prompts) for _ in range(self.config.generations)]
        assert list(map(str, expected[share])) == list(prompts), "the sampler goes through the run's problems in order"
        episodes = self.player.play(update)
        steps = [episode.steps[0] for episode in episodes]
        figures = self._metrics["train"]
        figures["success"].append(sum(episode.solved for episode in episodes) / len(episodes))
        figures["prompt_tokens"].append(sum(len(step.prompt) for step in steps) / len(steps))
        name = f"update {update} of {self.config.updates}: learning"
        self.progress.phase(name, self.unit_steps)
        return {
            "prompt_ids": [list(step.prompt) for step in steps[share]],
            "completion_ids": [list(step.response) for step in steps[share]],
            "logprobs": None,  # of the engine, which the network computes for itself
            "graded": [step.grade.reward for step in steps[share]],
        }

    def measured(self) -> dict[str, float]:
        """The share of held-out problems solved, by split."""
        return self.player.measured(self.units)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log an update's figures by our names, means over its micro-batches and optimiser steps."""
        if "train_runtime" not in logs:
            found = {name: sum(values) / len(values) for name, values in self._metrics["train"].items() if values}
            self._metrics["train"].clear()
            known = {**logs, **found}
            logs = {ours: known[theirs] for theirs, ours in _NAMES.items() if theirs in known}
            logs["seconds"] = time.monotonic() - self._began
        Trainer.log(self, logs, start_time)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None:  # transformers logs the last epoch's only
            self._metrics["train"]["grad_norm"].append(float(norm))
        return norm

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logprobs = found[0].detach()
        return found

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """TRL's, and the KL divergence from the policy that played: mean over tokens of r - 1 - log r, r their ratio.

        In the first epoch there is no other policy: 0.
        """
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"].bool()
        kl = torch.zeros((), device=mask.device)
        if (old := inputs.get("old_per_token_logps")) is not None:
            log_ratios = (self._logprobs - old)[mask]
            kl = (torch.expm1(log_ratios) - log_ratios).sum()
        total, tokens = self.accelerator.reduce(torch.stack([kl, mask.sum()]), reduction="sum").tolist()
        self._metrics["train"]["old_kl"].append(total / max(tokens, 1))
        return loss


class _Updates(Steps):
    """Moves the bar, says that weights have changed, and has success measured when it is due."""

    _trainer: _Trainer

    def __init__(self, trainer: _Trainer, every: int) -> None:
        super().__init__(trainer)
        self._every = every * trainer.unit_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        super().on_step_end(args, state, control, **others)
        trainer = self._trainer
        trainer.player.changed()
        figures = trainer._metrics["train"]
        trainer.progress.step({"reward": figures["reward"][-1], "kl": figures["old_kl"][-1]})
        if state.global_step % self._every == 0:
            control.should_evaluate = True
