"""What training takes, to first order: formulas, not measurements, and said to be such wherever they are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalkit.tasks import TASKS, make_task
from surgery.checkpoint import Checkpoint
from trainers.config import GrpoConfig, PpoConfig, SftConfig

Config = SftConfig | PpoConfig | GrpoConfig

STATE = 16  # bytes a parameter: weights, gradients and the two moments of Adam, all float32
KEPT_STATE = 12  # bytes a parameter of what a killed run goes on from: weights and moments
LOADED = 4  # bytes a parameter that each process holds while the weights are loaded and divided
# Bytes that a layer keeps for the backward pass, a token and a unit of its width, in 16 bits (Korthikanti et al. 2022,
# arXiv 2205.05198, without the attention matrix, which fused kernels do not keep); twice that in float32.
ACTIVATIONS = 34
BOUNDARY = 2  # the same for what gradient checkpointing keeps: a layer's input
LOGITS = 12  # bytes a logit: it, its log-probability and its gradient in float32
PROMPT = 256  # tokens of a question that are reckoned with
LIBRARIES = 1_200_000_000  # bytes of a process with torch, transformers and TRL, measured
GRID = 80_000_000_000  # bytes of a device where the pipeline does not say
FORMULA = (
    f"Training: {STATE} bytes a parameter (weights, gradients, two moments, float32), divided among the devices, "
    f"activations of {ACTIVATIONS} bytes a token, layer and unit of width in 16 bits ({BOUNDARY} with gradient "
    f"checkpointing, and one layer whole), {LOGITS} bytes a logit, and vLLM's share; an estimate, good to a third. "
    "Edits and comparisons: the plans of `surgery plan` and `surgery diff`, upper bounds."
)


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """Bytes: on each device (None: training is on the processor), in the host, left on disk, and there meanwhile."""

    device: int | None
    host: int
    disk: int
    peak_disk: int


def training_cost(config: Config, parent: Checkpoint, devices: int, device_memory: int | None) -> TrainingCost:
    """What a run of a configuration from a checkpoint takes, on so many devices (0: on the processor)."""
    parameters = sum(info.elements for info in parent.tensors.values())
    nbytes = sum(info.nbytes for info in parent.tensors.values())
    training = STATE * parameters // max(devices, 1) + _activations(config, parent)
    served = 0
    if not isinstance(config, SftConfig) and config.rollout.engine == "vllm":
        share = float(config.rollout.options.get("gpu_memory_utilization", 0.9))
        served = int(share * (device_memory or GRID)) if devices else 2 * nbytes
    kept, extra = _checkpoints(config)
    state = KEPT_STATE * parameters
    return TrainingCost(
        device=training + served if devices else None,
        host=LIBRARIES + (devices * LOADED * parameters if devices else training + served),
        disk=kept * nbytes,
        peak_disk=(kept + extra) * nbytes + 2 * state,  # the new state is whole before the old one goes
    )


def tokens(config: Config, parent: Checkpoint) -> int:
    """Tokens of a sequence that are reckoned with: as many as the configuration lets it have."""
    if isinstance(config, SftConfig):
        found = config.max_length or PROMPT + _answer(config.data.task)
    else:
        turns = (config.attempts or 1) if isinstance(config, PpoConfig) else 1
        found = turns * (PROMPT + (config.rollout.max_tokens or _answer(config.data.task)))
    return min(found, int(_field(parent.config, "max_position_embeddings") or found))


def steps(config: Config) -> int:
    """Optimiser steps of fine-tuning, or updates."""
    if not isinstance(config, SftConfig):
        return config.updates
    return config.steps or config.epochs * math.ceil((config.data.n or 1000) / config.batch_size)


def _checkpoints(config: Config) -> tuple[int, int]:
    """How many checkpoints stay, and how many more there are meanwhile."""
    written = 1 if config.save_every is None else math.ceil(steps(config) / config.save_every)
    return (min(2, written), 1) if config.keep == "best" else (written, 0)


def _activations(config: Config, parent: Checkpoint) -> int:
    width = _field(parent.config, "hidden_size") or 1
    layers = _field(parent.config, "num_hidden_layers") or 1
    words = _field(parent.config, "vocab_size") or 1
    at_once = config.micro_batch_size * tokens(config, parent)
    wide = 2 if config.precision == "float32" else 1
    whole = wide * ACTIVATIONS * at_once * width
    kept = wide * BOUNDARY * at_once * width * layers + whole if config.gradient_checkpointing else whole * layers
    return kept + LOGITS * at_once * words


def _answer(task: str | None) -> int:
    return make_task(task, {}).max_tokens if task is not None and task in TASKS else PROMPT


def _field(config: Mapping[str, Any], name: str) -> int:
    """A size in a configuration, or in the language model's part of it."""
    inner = config.get("text_config")
    value = config.get(name, inner.get(name) if isinstance(inner, Mapping) else None)
    return value if isinstance(value, int) else 0
