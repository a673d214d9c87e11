"""In which precision a run computes."""

from __future__ import annotations

from trainers.config import Training


def in_bfloat16(config: Training) -> bool:
    """Whether the arithmetic is bfloat16 (autocast); weights, moments and losses are float32 in any case.

    `auto` takes it where the hardware multiplies matrices in it: GPUs since Ampere, and CPUs with AMX, on which
    SmolLM2-135M's forward and backward pass take about a third of the time. Other CPUs are slower with it.
    """
    import torch

    if config.precision != "auto":
        return config.precision == "bfloat16"
    if config.device != "cpu" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
