"""Whether a network is whole in every process."""

from __future__ import annotations

from accelerate import Accelerator, DistributedType

from trainers.errors import TrainingError


def check_whole(accelerator: Accelerator, remedy: str) -> None:
    """Raise TrainingError where the weights are divided among devices, so that no process can answer by itself."""
    kind = accelerator.distributed_type
    plugin = accelerator.state.deepspeed_plugin
    if kind == DistributedType.FSDP or (kind == DistributedType.DEEPSPEED and plugin.zero_stage == 3):
        raise TrainingError(f"{kind.value} divides the weights among the devices, and none can answer alone; {remedy}")
