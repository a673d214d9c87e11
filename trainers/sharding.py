"""Networks among several devices: what is divided, what must be whole, and in which precision results come back."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy

from trainers.errors import TrainingError
from trainers.launched import several


def on_cpu(device: str) -> bool:
    """Whether a run computes on the CPU: as its configuration says, or for want of anything else."""
    return device == "cpu" or not torch.accelerator.is_available()


def check_launched(device: str) -> None:
    """Raise TrainingError where several GPUs are visible and no launcher has started a process for each."""
    if device != "cpu" and torch.cuda.device_count() > 1 and not several():
        raise TrainingError(
            f"found {torch.cuda.device_count()} GPUs and one process; start one for each with `accelerate launch "
            "--module surgery train ...`, or show it one GPU with `CUDA_VISIBLE_DEVICES=0`"
        )


def check_whole(accelerator: Accelerator, remedy: str, deed: str = "answer", stage: int = 3) -> None:
    """Raise TrainingError where the weights are divided among devices, so that no process can answer by itself.

    `deed` is what else no process can do then. `stage` is the lowest of ZeRO's that counts: from the first on the
    float32 weights are divided, and from the third those that compute.
    """
    kind = accelerator.distributed_type
    plugin = accelerator.state.deepspeed_plugin
    if kind == DistributedType.FSDP or (kind == DistributedType.DEEPSPEED and plugin.zero_stage >= stage):
        raise TrainingError(f"{kind.value} divides the weights among the devices, and none can {deed} alone; {remedy}")


def keep_float32(accelerator: Accelerator) -> None:
    """Have FSDP compute in bfloat16 alone: results and sums of gradients stay float32. To be called before `prepare`.

    accelerate would have them rounded to 16 bits as well, and a response's log-probability is a sum over hundreds of
    tokens, of which ratios are taken.
    """
    if accelerator.is_fsdp2 and accelerator.mixed_precision == "bf16":
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )


def unused_parameters(network: Any) -> bool:
    """Whether a text leaves parameters without gradients: towers of other media, experts that no token goes to.

    DistributedDataParallel has to be told.
    """
    text = network.config.get_text_config()
    experts = ("num_experts", "num_local_experts", "n_routed_experts")
    return text is not network.config or any(getattr(text, name, None) for name in experts)
