"""In which precision a run computes."""

from __future__ import annotations

from trainers.config import Training


def in_bfloat16(config: Training) -> bool:
    """Whether the arithmetic is bfloat16 (autocast); weights, moments and losses are float32 in any case.

    `auto` takes it where a GPU has it: on most CPUs it is slower than float32.
    """
    import torch

    if config.precision != "auto":
        return config.precision == "bfloat16"
    return config.device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
