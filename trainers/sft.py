"""Supervised fine-tuning: TRL's trainer on our sequences, with held-out losses and ordinary checkpoints.

Where it departs from the runs of arXiv 2509.12235: weights and moments are kept in float32 (bfloat16 is for the
arithmetic), and held-out losses are means over all answer tokens, not over batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import SFTConfig as Arguments
from trl import SFTTrainer

from evalkit.rendering import Renderer
from surgery.errors import Fault
from trainers.actors import Autocast
from trainers.config import SftConfig
from trainers.errors import ConfigError, TrainingError
from trainers.precision import in_bfloat16
from trainers.progress import Progress
from trainers.recorder import Recorder
from trainers.schedule import scheduler_arguments
from trainers.sequences import Encoded
from trainers.session import Session

IGNORED = -100  # the label of a token that is not learned, as torch's cross entropy has it
_UNKEPT = ("num_tokens", "epoch")  # the first begins anew where a run goes on
_SHOWN = ("loss", "ood_loss")  # beside the progress bar

Measure = Callable[[Any, Autocast, int], Mapping[str, float]]  # of a network, in a precision, at a step


def fine_tune(
    config: SftConfig,
    network: Any,
    renderer: Renderer,
    learned: Sequence[Encoded],
    held_out: Mapping[str, Sequence[Encoded]],
    session: Session,
    recorder: Recorder,
    progress: Progress,
    accuracy: Measure | None = None,
) -> int:
    """Train a network on sequences, in this process or as one of several, and return the number of steps.

    Losses go to the recorder's log and checkpoints to its directory. Raises TrainingError, RunError, and ConfigError
    for batches that the devices cannot share out.
    """
    arguments = _arguments(config, len(learned), session)
    trainer = _Trainer(
        model=network,
        args=arguments,
        processing_class=renderer.tokenizer,
        train_dataset=_dataset(learned),
        eval_dataset={name: _dataset(sequences) for name, sequences in held_out.items()},
    )
    trainer.recorder, trainer.session, trainer.accuracy = recorder, session, accuracy
    trainer.accuracy_every = config.accuracy.every if config.accuracy else 0
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Steps(recorder, progress))
    progress.phase("training", arguments.max_steps, session.step or 0)
    trainer.train(resume_from_checkpoint=None if session.step is None else str(session.state(session.step)))
    return int(arguments.max_steps)


def accumulation(config: SftConfig, processes: int) -> tuple[int, int]:
    """Sequences at a time on each device, and how many times before an optimiser step. Raises ConfigError."""
    each, rest = divmod(config.batch_size, processes)
    micro = min(config.micro_batch_size, each)
    if rest or each % micro:
        message = (
            f"found {config.batch_size} with `micro_batch_size` {config.micro_batch_size} on {processes} "
            f"{'device' if processes == 1 else 'devices'}; expected a multiple of {processes * max(micro, 1)}"
        )
        raise ConfigError([Fault("batch_size", message)])
    return micro, each // micro


def optimiser_steps(config: SftConfig, sequences: int) -> int:
    """Optimiser steps of a run; the last batch of an epoch may be smaller."""
    return config.steps or config.epochs * math.ceil(sequences / config.batch_size)


def _arguments(config: SftConfig, sequences: int, session: Session) -> Arguments:
    micro, times = accumulation(config, session.processes.num_processes)
    steps = optimiser_steps(config, sequences)
    optimizer = config.optimizer
    schedule, warmup, options = scheduler_arguments(optimizer, steps)
    return Arguments(
        output_dir=config.out,
        max_steps=steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=times,
        learning_rate=optimizer.learning_rate,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs=options,
        warmup_steps=warmup,
        seed=config.seed,
        bf16=in_bfloat16(config),
        use_cpu=config.device == "cpu",
        gradient_checkpointing=config.gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=config.loss_every,
        eval_on_start=session.step is None,
        save_strategy="steps",
        save_steps=config.save_every or steps,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite ends the run, see `training_step`
        report_to=list(config.report_to),
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),  # torch warns otherwise
        max_length=None,  # sequences come whole or not at all
    )


def _dataset(sequences: Sequence[Encoded]) -> Dataset:
    """Token ids and labels, in order."""
    return Dataset.from_dict(
        {
            "input_ids": [list(sequence.ids) for sequence in sequences],
            "labels": [
                [id_ if learned else IGNORED for id_, learned in zip(sequence.ids, sequence.response, strict=True)]
                for sequence in sequences
            ],
        }
    )


class _Trainer(SFTTrainer):  # type: ignore[misc]  # TRL is not typed
    """TRL's trainer, but for what it measures, what it writes, and when it gives up."""

    recorder: Recorder
    session: Session
    accuracy: Measure | None
    accuracy_every: int

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of a micro-batch; raises TrainingError before a loss that is not finite does harm."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        wrong = self.accelerator.reduce((~loss.detach().isfinite()).to(torch.int32), reduction="sum")
        if wrong.item():
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is not finite; lower `optimizer.learning_rate`, or look "
                f"for NaN in the checkpoint{self.recorder.last_good}"
            )
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The held-out losses in nats a token, and accuracies when they are due."""
        step = self.state.global_step
        network = self.accelerator.unwrap_model(self.model)
        training = network.training
        network.eval()
        figures = {f"{name}_loss": self._loss(dataset) for name, dataset in self.eval_dataset.items()}
        if self.accuracy is not None and (step % self.accuracy_every == 0 or step == self.state.max_steps):
            figures.update(self.accuracy(network, self.accelerator.autocast, step))
        network.train(training)
        self.log(dict(figures))
        return figures

    @torch.no_grad()
    def _loss(self, dataset: Dataset) -> float:
        """The mean over all answer tokens of a dataset, wherever they are computed."""
        total, count = 0.0, 0
        for batch in self.get_eval_dataloader(dataset):
            with self.compute_loss_context_manager():
                found = self.model_wrapped(**batch, use_cache=False, fused_lm_head=True)
            sums, tokens = self.accelerator.gather_for_metrics(
                (found.log_probs.double().sum(dim=1), found.label_mask.sum(dim=1))
            )
            total, count = total - sums.sum().item(), count + int(tokens.sum())
        return total / count

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """An ordinary checkpoint and, unless this is the end, the state to go on from."""
        step = self.state.global_step
        weights = self.accelerator.get_state_dict(self.deepspeed if self.is_deepspeed_enabled else self.model)
        self.recorder.checkpoint(step, self.accelerator.unwrap_model(self.model), weights)
        if step < self.state.max_steps:
            Trainer._save_checkpoint(self, model, trial)  # not TRL's, which writes a model card
            self.session.seal(step)

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
        """Where states go; trackers write to the run's directory itself."""
        return str(self.session.states)


class _Steps(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Writes figures down, moves the bar, and has losses measured wherever a checkpoint is written."""

    def __init__(self, recorder: Recorder, progress: Progress) -> None:
        self._recorder, self._progress = recorder, progress
        self._last: dict[str, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if control.should_save:
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:  # noqa: ARG002
        if "train_runtime" in logs:  # the summary at the end
            return
        known = {name: value for name, value in logs.items() if name not in _UNKEPT}
        figures = {name: float(value) for name, value in known.items() if isinstance(value, int | float)}
        self._recorder.figures(state.global_step, figures)
        self._last.update(figures)
        if "loss" in figures and state.is_world_process_zero:
            self._progress.step({name: self._last[name] for name in _SHOWN if name in self._last})
