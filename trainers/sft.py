"""Supervised fine-tuning: TRL's trainer on our sequences, with held-out losses and ordinary checkpoints.

Where it departs from the runs of arXiv 2509.12235: weights and moments are kept in float32 (bfloat16 is for the
arithmetic), and held-out losses are means over all answer tokens, not over batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig as Arguments
from trl import SFTTrainer

from evalkit.rendering import Renderer
from trainers.actors import Autocast
from trainers.averaging import WeightAverage
from trainers.config import SftConfig, SftOptimizer
from trainers.muon import MuonWithAdamW
from trainers.progress import Progress
from trainers.recorder import Recorder
from trainers.recording import RecordingTrainer, Steps, arguments
from trainers.sequences import Encoded
from trainers.session import Session
from trainers.sharding import check_whole

IGNORED = -100  # the label of a token that is not learned, as torch's cross entropy has it
_SHOWN = ("loss", "ood_loss")  # beside the progress bar

Measure = Callable[[Any, Autocast, int], Mapping[str, float]]  # of a network, in a precision, at a step


def fine_tune(
    config: SftConfig,
    batch: tuple[int, int],
    network: Any,
    renderer: Renderer,
    learned: Sequence[Encoded],
    held_out: Mapping[str, Sequence[Encoded]],
    recorder: Recorder,
    progress: Progress,
    accuracy: Measure | None = None,
) -> int:
    """Train a network on sequences, in this process or as one of several, and return the number of steps.

    `batch` is as of `trainers.batches.accumulation`. Losses go to the recorder's log and checkpoints to its directory.
    Raises TrainingError and RunError.
    """
    session = recorder.session
    arguments = _arguments(config, network, batch, len(learned), session)
    trainer = _Trainer(
        model=network,
        args=arguments,
        processing_class=renderer.tokenizer,
        train_dataset=_dataset(learned),
        eval_dataset={name: _dataset(sequences) for name, sequences in held_out.items()},
    )
    trainer.recorder, trainer.session, trainer.accuracy = recorder, session, accuracy
    trainer.accuracy_every = config.accuracy.every if config.accuracy else 0
    trainer.rates = config.optimizer
    trainer.average = None
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Steps(trainer, progress))
    if accuracy is not None:
        check_whole(trainer.accelerator, "leave out `accuracy`, and score checkpoints with `surgery eval`")
    if config.optimizer.name == "muon":
        check_whole(trainer.accelerator, "set `optimizer.name` to `adamw`", "orthogonalise a matrix")
    if config.average is not None:
        check_whole(trainer.accelerator, "leave out `average`", "average them", stage=1)
        trainer.average = WeightAverage(trainer.model, config.average)
    progress.phase("training", arguments.max_steps, session.step or 0)
    trainer.begin()
    return int(arguments.max_steps)


def optimiser_steps(config: SftConfig, sequences: int) -> int:
    """Optimiser steps of a run; the last batch of an epoch may be smaller.

    With several devices accelerate fills it up with sequences from the beginning.
    """
    return config.steps or config.epochs * math.ceil(sequences / config.batch_size)


def _arguments(config: SftConfig, network: Any, batch: tuple[int, int], sequences: int, session: Session) -> Arguments:
    steps = optimiser_steps(config, sequences)
    return Arguments(
        **arguments(config, network, session, steps, batch, config.save_every or steps),
        eval_strategy="steps",
        eval_steps=config.loss_every,
        logging_steps=1,
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


class _Trainer(RecordingTrainer, SFTTrainer):  # type: ignore[misc]  # TRL is not typed
    """TRL's trainer, but for what it measures, what it writes, and when it gives up."""

    accuracy: Measure | None
    accuracy_every: int
    rates: SftOptimizer
    average: WeightAverage | None
    optimizer: torch.optim.Optimizer | None

    def create_optimizer(self, model: Any = None) -> Any:
        """The configuration's: transformers' own AdamW, or ours."""
        rates = self.rates
        if self.optimizer is None and rates.name == "muon":
            network = self.model if model is None else model
            self.optimizer = MuonWithAdamW(network, rates.learning_rate, rates.betas, rates.eps, rates.weight_decay)
        return super().create_optimizer(model)

    def begin(self) -> None:
        """Go on with the average, too."""
        step = self.session.step
        if self.average is not None and step is not None:
            with self.session.loading():
                self.average.load(self.session.state(step))
        super().begin()

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The averages, if there are any: those of the checkpoints."""
        with self._averaged():
            return super().weights()

    def _place(self) -> None:
        """With the average, where there is one, in every process the same."""
        if self.average is not None and self.session.main:
            self.average.save(self.unplaced)
        super()._place()

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.in_place()

    def measured(self) -> dict[str, float]:
        """The held-out losses in nats a token, and accuracies when they are due."""
        with self._averaged():
            return self._measured()

    def _measured(self) -> dict[str, float]:
        step = self.state.global_step
        network = self.accelerator.unwrap_model(self.model)
        training = network.training
        network.eval()
        figures = {f"{name}_loss": self._loss(dataset) for name, dataset in self.eval_dataset.items()}
        if self.accuracy is not None and (step % self.accuracy_every == 0 or step == self.state.max_steps):
            figures.update(self.accuracy(network, self.accelerator.autocast, step))
        network.train(training)
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


class _Steps(Steps):
    """Writes figures down, and moves the bar."""

    def __init__(self, trainer: _Trainer, progress: Progress) -> None:
        super().__init__(trainer)
        self._progress = progress
        self._last: dict[str, float] = {}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Take the step into the average."""
        if self._trainer.average is not None:
            self._trainer.average.update()

    def logged(self, figures: Mapping[str, float]) -> None:
        """A step was taken, or losses were measured."""
        self._last.update(figures)
        if "loss" in figures and self._trainer.recorder.main:
            self._progress.step({name: self._last[name] for name in _SHOWN if name in self._last})
