"""Networks among several devices, as far as it can be seen without them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from transformers import Gemma3Config, LlamaConfig, Qwen3MoeConfig

from trainers import sharding
from trainers.errors import TrainingError


def accelerator(kind: DistributedType, **state: Any) -> Any:
    """What is asked of an accelerator."""
    return SimpleNamespace(
        distributed_type=kind,
        state=SimpleNamespace(**{"deepspeed_plugin": None, **state}),
        is_fsdp2=kind == DistributedType.FSDP,
        mixed_precision="bf16",
    )


@pytest.mark.parametrize(
    ("kind", "stage", "whole"),
    [
        (DistributedType.NO, None, True),
        (DistributedType.MULTI_GPU, None, True),
        (DistributedType.FSDP, None, False),
        (DistributedType.DEEPSPEED, 2, True),
        (DistributedType.DEEPSPEED, 3, False),
    ],
)
def test_who_can_answer_alone(kind: DistributedType, stage: int | None, whole: bool) -> None:
    """Where weights are divided the run ends with what to do, before its processes wait for each other for ever."""
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    if whole:
        sharding.check_whole(accelerator(kind, deepspeed_plugin=plugin), "set it")
    else:
        with pytest.raises(TrainingError, match=r"divides the weights among the devices.*; set it$"):
            sharding.check_whole(accelerator(kind, deepspeed_plugin=plugin), "set it")


def test_who_has_float32_weights() -> None:
    """From ZeRO's first stage on no process has all of them."""
    plugin = SimpleNamespace(zero_stage=1)
    divided = accelerator(DistributedType.DEEPSPEED, deepspeed_plugin=plugin)
    with pytest.raises(TrainingError, match="none can average them alone; leave out `average`"):
        sharding.check_whole(divided, "leave out `average`", "average them", stage=1)
    sharding.check_whole(accelerator(DistributedType.MULTI_GPU), "leave out `average`", "average them", stage=1)


def test_results_stay_float32() -> None:
    """FSDP is told to round weights alone; where there is no FSDP nothing is touched."""
    divided = accelerator(DistributedType.FSDP, fsdp_plugin=SimpleNamespace(mixed_precision_policy=None))
    sharding.keep_float32(divided)
    policy = divided.state.fsdp_plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (
        torch.bfloat16, torch.float32, torch.float32,
    )  # fmt: skip
    sharding.keep_float32(accelerator(DistributedType.NO))


@pytest.mark.parametrize(
    ("config", "unused"), [(LlamaConfig(), False), (Qwen3MoeConfig(num_experts=4), True), (Gemma3Config(), True)]
)
def test_what_a_text_leaves_unused(config: Any, unused: bool) -> None:
    """Towers and experts may be without gradients, a plain decoder's parameters are not."""
    assert sharding.unused_parameters(SimpleNamespace(config=config)) is unused


def test_one_process_for_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says how to start more, unless it is one of several, or on the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sharding.check_launched("cpu")
    with pytest.raises(TrainingError, match="found 2 GPUs and one process; start one for each with `accelerate launch"):
        sharding.check_launched("auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    sharding.check_launched("auto")
