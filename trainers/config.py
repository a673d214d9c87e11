"""What the configurations of the trainers have in common: data, optimiser, precision, checkpoints, reports."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from surgery.quantity import Quantity, QuantityField

# `wsd`: warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): constant, and linear to 0 at the end.
Schedule = Literal["cosine", "linear", "constant", "wsd"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"]
Ratio = Literal["response", "token"]
# Those that both transformers and accelerate know; each is a package of the same name.
Tracker = Literal["clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


class Section(BaseModel):
    """A map of a configuration: frozen, strict, and without keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """Problems of a task with their reference answers, or records of a file.

    Which part of a task's problems a run may see is not for the configuration to say: see `trainers.data`.
    """

    task: str | None = Field(default=None, description="a task of `surgery eval --list`")
    parameters: dict[str, Any] = Field(default_factory=dict, description="the task's parameters")
    split: str = Field(default="id", description="a split of the task")
    file: str | None = Field(default=None, description="a file of JSON lines: prompt and completion, or messages")
    n: int | None = Field(
        default=None, ge=1, description="problems of the task (default: 1000), or records (default: all)"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.task is None) == (self.file is None):
            raise ValueError("expected `task` or `file`, and not both")
        if self.file is not None and (self.parameters or self.split != "id"):  # as a dump has it, the default may stand
            raise ValueError("`parameters` and `split` belong to a task; a file has none")
        return self


class HeldOut(Section):
    """What is measured while training, and never trained on."""

    n: int = Field(default=64, ge=1, description="problems of a task; of a file all records are taken")
    id: Data | None = Field(
        default=None, description="in distribution; default: the split `id` of the task, if it is one"
    )
    ood: Data | None = Field(default=None, description="out of distribution; default: the task's split `ood`")


class TaskData(Section):
    """Problems of a task, for learning from their grades."""

    task: str = Field(description="a task of `surgery eval --list`")
    parameters: dict[str, Any] = Field(default_factory=dict, description="the task's parameters")
    split: str = Field(default="id", description="the split whose problems are played")
    n: int | None = Field(default=None, ge=1, description="different problems (default: 1000)")


class Success(Section):
    """How often the model is right on problems that it does not learn from."""

    every: int = Field(default=10, ge=1, description="updates from one measurement to the next")
    n: int = Field(default=64, ge=1, description="problems of each split")
    splits: tuple[str, ...] = Field(default=(), description="default: those that the task scores, `id` and `ood`")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")


class Accuracy(Section):
    """Accuracy while training, by an engine in a process of its own or in this one."""

    every: int = Field(default=100, ge=1, description="steps from one measurement to the next")
    n: int = Field(default=64, ge=1, description="problems of each split")
    attempts: int = Field(default=1, ge=1, description="tries at a problem")
    max_tokens: int | None = Field(default=None, ge=1, description="tokens of an answer; default: the task's")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")


class Rollout(Section):
    """How answers are sampled."""

    engine: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="`transformers`: the model as it is being trained; `vllm`: its weights, each update",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of vLLM: see `surgery eval --engine-option`")
    temperature: float = Field(default=1.0, gt=0, description="of the distribution that answers are drawn from")
    max_tokens: int | None = Field(default=None, ge=1, description="tokens of an answer; default: the task's")

    @model_validator(mode="after")
    def _options_are_read(self) -> Rollout:
        if self.options and self.engine != "vllm":
            raise ValueError(
                f"`options` are vLLM's, and `engine` is `{self.engine}`; leave them out, or set `engine: vllm`"
            )
        return self


def _betas(betas: tuple[float, float]) -> tuple[float, float]:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"found {list(betas)}; expected two numbers from 0 to below 1")
    return betas


class Optimizer(Section):
    """AdamW (Loshchilov and Hutter 2019; Adam where `weight_decay` is 0) and its learning rate."""

    learning_rate: float = Field(default=1e-6, gt=0, le=1, description="the highest")
    betas: Annotated[tuple[float, float], AfterValidator(_betas)] = Field(
        default=(0.9, 0.98), description="of the moments"
    )
    eps: float = Field(default=1e-7, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(default=0.0, ge=0, description="of matrices, decoupled")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients beyond this norm are scaled down to it")
    schedule: Schedule = Field(default="cosine", description="how the rate falls after the warm-up")
    warmup: QuantityField = Field(default=Quantity(count=0), description="steps, or a percentage of them")
    decay: QuantityField | None = Field(
        default=None, description="last steps, or a percentage of all, in which the rate of `wsd` falls to 0"
    )
    min_learning_rate: float = Field(default=0.0, ge=0, description="where `cosine` ends")

    @model_validator(mode="after")
    def _falls(self) -> Optimizer:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"found `min_learning_rate` {self.min_learning_rate} above `learning_rate` {self.learning_rate}"
            )
        if self.min_learning_rate and self.schedule != "cosine":
            raise ValueError("`min_learning_rate` is where `cosine` ends; leave it out, or set `schedule: cosine`")
        if self.schedule == "wsd" and self.decay is None:
            raise ValueError("`schedule: wsd` needs `decay`, the last steps of the run, such as `decay: 40%`")
        if self.schedule != "wsd" and self.decay is not None:
            raise ValueError("`decay` is of `schedule: wsd`; leave it out, or set that")
        return self


class SftOptimizer(Optimizer):
    """AdamW, or Muon for the matrices inside the layers and AdamW for all else: see `trainers.muon`."""

    name: Literal["adamw", "muon"] = Field(
        default="adamw", description="`muon`: orthogonalised momentum for the layers' matrices; the rest is `adamw`'s"
    )


class PpoOptimizer(Optimizer):
    """Adam as in arXiv 2501.17161."""

    betas: Annotated[tuple[float, float], AfterValidator(_betas)] = Field(
        default=(0.9, 0.999), description="of the moments"
    )
    max_grad_norm: float = Field(default=0.01, gt=0, description="gradients beyond this norm are scaled down to it")


class Training(Section):
    """The keys of every trainer's configuration."""

    model: str = Field(description="the checkpoint to begin with: a directory or a hub id")
    out: Annotated[str, AfterValidator(os.path.expanduser)] = Field(
        description="the directory of the run, which holds its checkpoints"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the data, their order, and sampling")
    device: Literal["auto", "cpu"] = Field(default="auto", description="`auto`: the GPUs, if there are any")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the arithmetic; weights are float32 all along. `auto`: bfloat16 where the hardware has it",
    )
    attention: Attention | None = Field(default=None, description="transformers' implementation of attention")
    gradient_checkpointing: bool = Field(default=False, description="compute activations twice, and keep few of them")
    chat: bool = Field(default=True, description="through the chat template; without it prompts are plain text")
    chat_template: str | None = Field(default=None, description="a file that replaces the checkpoint's template")
    micro_batch_size: int = Field(default=8, ge=1, description="sequences at a time on each device")
    save_every: int | None = Field(
        default=None, ge=1, description="steps from one checkpoint to the next; default: the last"
    )
    keep: Literal["all", "best"] = Field(
        default="all", description="which checkpoints stay: all, or the last one and the best out of distribution"
    )
    save_dtype: Literal["keep", "float32", "bfloat16", "float16"] = Field(
        default="keep", description="of the checkpoints; `keep`: that of `model`"
    )
    report_to: tuple[Tracker, ...] = Field(default=(), description="trackers that get the figures, too")


class InitConfig(Section):
    """`surgery train init`: random weights, and a tokenizer whose tokens are a task's words."""

    out: Annotated[str, AfterValidator(os.path.expanduser)] = Field(description="the directory of the checkpoint")
    task: str = Field(description="a task of `surgery eval --list` that is made of a few words")
    parameters: dict[str, Any] = Field(default_factory=dict, description="the task's parameters")
    model_type: str = Field(description="transformers' name of the architecture, such as `llama`")
    architecture: dict[str, Any] = Field(
        default_factory=dict, description="fields of its configuration, such as `hidden_size`; others have its defaults"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the weights")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the checkpoint")


class SftConfig(Training):
    """`surgery train sft`: learn answers."""

    data: Data = Field(description="what is learned")
    held_out: HeldOut = Field(default_factory=HeldOut, description="what is measured meanwhile")
    optimizer: SftOptimizer = Field(default_factory=SftOptimizer, description="AdamW, or Muon and AdamW")
    epochs: int = Field(default=1, ge=1, description="times through the data")
    steps: int | None = Field(
        default=None, ge=1, description="optimiser steps in all; default: as many as the epochs take"
    )
    batch_size: int = Field(default=64, ge=1, description="sequences of an optimiser step, on all devices together")
    max_length: int | None = Field(
        default=None, ge=2, description="tokens of a sequence; longer ones are an error, not cut"
    )
    loss_every: int = Field(
        default=5, ge=1, description="steps from one measurement of the held-out losses to the next"
    )
    accuracy: Accuracy | None = Field(default=None, description="default: losses only")
    average: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, to be measured and saved; default: no average",
    )


class RlTraining(Training):
    """The keys that learning from grades has in any form."""

    data: TaskData = Field(description="what is played")
    rollout: Rollout = Field(default_factory=Rollout, description="how answers are sampled")
    success: Success = Field(default_factory=Success, description="what is measured meanwhile")
    updates: int = Field(default=20, ge=1, description="times that episodes are played and learned from")
    epochs: int = Field(default=4, ge=1, description="times through the episodes of an update")
    clip: float = Field(default=0.1, gt=0, lt=1, description="epsilon of the clipped surrogate")
    kl: float = Field(default=0.0, ge=0, description="weight of the KL divergence from `model`")


class PpoConfig(RlTraining):
    """`surgery train ppo`: learn from grades with a value function, over several turns."""

    optimizer: PpoOptimizer = Field(default_factory=PpoOptimizer, description="Adam")
    episodes: int = Field(default=128, ge=1, description="of an update, on all devices together")
    attempts: int | None = Field(default=None, ge=1, description="turns of an episode; default: the task's")
    mini_batches: int = Field(
        default=1, ge=1, description="optimiser steps of an epoch; 1: gradients of all turns together"
    )
    gamma: float = Field(default=0.9, ge=0, le=1, description="discount of the next turn")
    lam: float = Field(
        default=0.95, ge=0, le=1, description="lambda of generalised advantage estimation", alias="lambda"
    )
    normalize_advantages: bool = Field(
        default=True, description="to mean 0 and standard deviation 1 over an update's turns"
    )
    value_clip: float | None = Field(
        default=None, gt=0, description="how far a value may move in an update; default: `clip`"
    )
    value_coefficient: float = Field(default=0.5, ge=0, description="weight of the value loss")
    entropy: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    ratio: Ratio = Field(default="response", description="one probability ratio a response, or one a token")


class GrpoConfig(RlTraining):
    """`surgery train grpo`: learn from grades relative to those of other answers to the same problem."""

    optimizer: Optimizer = Field(default_factory=Optimizer, description="AdamW")
    prompts: int = Field(default=16, ge=1, description="problems of an update, on all devices together")
    generations: int = Field(default=8, ge=2, description="answers to each problem")
    epochs: int = Field(default=1, ge=1, description="times through the answers of an update")
    clip: float = Field(default=0.2, gt=0, lt=1, description="epsilon of the clipped surrogate")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group", description="whose standard deviation advantages are divided by"
    )
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = Field(
        default="dapo", description="TRL's, which differ in how the losses of tokens are averaged"
    )
