"""What we change in transformers' trainer, whichever of TRL's builds on it: what it writes, and when it gives up."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from trainers.config import Training
from trainers.errors import TrainingError
from trainers.precision import in_bfloat16
from trainers.recorder import Recorder
from trainers.schedule import scheduler_arguments
from trainers.session import Session
from trainers.sharding import keep_float32, unused_parameters

_UNWRITTEN = "unplaced"  # where transformers writes states, in directories that it counts by its own steps
# The first begins anew where a run goes on; the last is no accuracy of answers.
_UNKEPT = ("num_tokens", "epoch", "mean_token_accuracy")


def arguments(
    config: Training, network: Any, session: Session, steps: int, batch: tuple[int, int], every: int
) -> dict[str, Any]:
    """Those of transformers' trainer for so many optimiser steps, with a checkpoint every so many of them.

    `batch` is what `trainers.batches.accumulation` gives.
    """
    optimizer = config.optimizer  # type: ignore[attr-defined]  # which every trainer's own configuration has
    schedule, warmup, options = scheduler_arguments(optimizer, steps)
    return {
        "output_dir": config.out,
        "max_steps": steps,
        "per_device_train_batch_size": batch[0],
        "per_device_eval_batch_size": batch[0],
        "gradient_accumulation_steps": batch[1],
        "learning_rate": optimizer.learning_rate,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": options,
        "warmup_steps": warmup,
        "seed": config.seed,
        "bf16": in_bfloat16(config),
        "use_cpu": session.processes.device.type == "cpu",  # without it, transformers refuses bfloat16 there
        "gradient_checkpointing": config.gradient_checkpointing,
        "eval_on_start": session.step is None,
        "save_strategy": "steps",
        "save_steps": every,
        "logging_nan_inf_filter": False,  # a loss that is not finite ends the run, see `training_step`
        "report_to": list(config.report_to),
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
        "ddp_find_unused_parameters": unused_parameters(network),
        "router_aux_loss_coef": 0.0,  # it would be learned from prompts, too
        "dataloader_pin_memory": torch.cuda.is_available(),  # torch warns otherwise
    }


class RecordingTrainer(Trainer):  # type: ignore[misc]  # transformers is not followed
    """To be inherited from before one of TRL's trainers; `recorder` and `session` are set before it trains.

    The run's log and checkpoints count in `unit`s, each of `unit_steps` optimiser steps.
    """

    recorder: Recorder
    session: Session
    unit = "step"
    unit_steps = 1

    def begin(self) -> None:
        """Train, or go on from the state that an earlier run has left."""
        step = self.session.step
        keep_float32(self.accelerator)
        if step is not None:
            with self.session.loading():
                TrainerState.load_from_json(str(self.session.state(step) / TRAINER_STATE_NAME))
        self.train(resume_from_checkpoint=None if step is None else str(self.session.state(step)))

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.session.loading():
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self.session.loading() if checkpoint else nullcontext():
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with self.session.loading() if checkpoint else nullcontext():
            super()._load_rng_state(checkpoint)

    @property
    def units(self) -> int:
        """How many are done."""
        return int(self.state.global_step) // self.unit_steps

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Those of the network by its own names; every process has to ask."""
        found: Mapping[str, torch.Tensor] = self.accelerator.get_state_dict(
            self.deepspeed if self.is_deepspeed_enabled else self.model
        )
        return found

    def measured(self) -> dict[str, float]:
        """What is measured where `evaluate` is due."""
        raise NotImplementedError

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure, and write it down."""
        figures = self.measured()
        self.control.should_evaluate = False  # or transformers would measure once more after the last step
        Trainer.log(self, dict(figures))
        wrong = next((name for name, figure in figures.items() if not math.isfinite(figure)), None)
        if wrong is not None:
            raise self._not_finite(f"`{wrong}`", self.units)
        return figures

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of a micro-batch; raises TrainingError before a loss that is not finite does harm."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        wrong = self.accelerator.reduce((~loss.detach().isfinite()).to(torch.int32), reduction="sum")
        if wrong.item():
            raise self._not_finite("the loss")
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """The gradient's norm; raises TrainingError before one that is not finite does harm."""
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None and not math.isfinite(norm):
            raise self._not_finite("the gradient")
        return norm

    def _not_finite(self, what: str, unit: int | None = None) -> TrainingError:
        """The error of a figure that is not finite, in the present step or update, or in the one given."""
        unit = self.units + 1 if unit is None else unit
        return TrainingError(
            f"{self.unit} {unit}: {what} is not finite; lower `optimizer.learning_rate`, or look for NaN in the "
            f"checkpoint{self.recorder.last_good}"
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """An ordinary checkpoint and, unless this is the end, the state to go on from."""
        self.recorder.checkpoint(self.units, self.accelerator.unwrap_model(self.model), self.weights())
        if self.state.global_step < self.state.max_steps:
            with self.session.saving(self.units, self.session.states / _UNWRITTEN):
                Trainer._save_checkpoint(self, model, trial)  # not TRL's, which writes a model card
                self._place()

    @property
    def unplaced(self) -> Path:
        """Where transformers has written the present state."""
        return self.session.states / _UNWRITTEN / f"checkpoint-{self.state.global_step}"

    def _place(self) -> None:
        """Move the state, once every process has written its part, to where the run looks for it."""
        self.accelerator.wait_for_everyone()
        if self.session.main:
            place = self.session.state(self.units)
            shutil.rmtree(place, ignore_errors=True)
            self.unplaced.replace(place)
            shutil.rmtree(self.unplaced.parent)

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
        """Where states go; trackers write to the run's directory itself."""
        return str(self.session.states / _UNWRITTEN)

    def _send_telemetry(self) -> None:
        """Nothing: TRL would tell the hub's servers of every run."""


class Steps(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Writes figures down, and has the network measured wherever a checkpoint is written."""

    def __init__(self, trainer: RecordingTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if control.should_save:
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:  # noqa: ARG002
        if "train_runtime" in logs:  # the summary at the end
            return
        known = {name: value for name, value in logs.items() if name not in _UNKEPT}
        figures = {name: float(value) for name, value in known.items() if isinstance(value, int | float)}
        self._trainer.recorder.figures(self._trainer.units, figures)
        self.logged(figures)

    def logged(self, figures: Mapping[str, float]) -> None:
        """Figures were written down."""
