"""Checkpoints that do not exist yet, for planning: whole headers, and files that are holes and take no disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.engines.loading import quiet
from evalkit.tasks import make_task
from surgery.dtypes import DTYPES
from surgery.errors import Fault
from surgery.wording import suggestion
from trainers.config import InitConfig
from trainers.errors import ConfigError
from trainers.initial import ANSWER, END, PAD, UNKNOWN, refusal
from trainers.loading import load

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_ALIGNED = 8  # bytes; what safetensors pads its header to


def make_standin(directory: Path, configuration: Mapping[str, Any], where: str) -> Path:
    """Write a checkpoint without data for a configuration of transformers, such as `{model_type: llama, ...}`.

    `dtype` in it is that of all tensors, by default bfloat16. Names and shapes are transformers' own, from a network
    without storage. Raises ConfigError, which begins with `where`, for what transformers does not make.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as LANGUAGE_MODELS

    fields = dict(configuration)
    kind, dtype = str(fields.pop("model_type", "")), str(fields.pop("dtype", "bfloat16"))
    if kind not in LANGUAGE_MODELS:
        hint = suggestion(kind, sorted(LANGUAGE_MODELS), "transformers' language models")
        raise ConfigError([Fault(f"{where}.model_type", f"found `{kind}`; {hint}")])
    if dtype not in _NAMES:
        raise ConfigError([Fault(f"{where}.dtype", f"found `{dtype}`; {suggestion(dtype, _NAMES, 'expected')}")])
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.for_model(kind, **fields)
            network = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever an architecture raises for sizes that do not fit
        raise ConfigError([refusal(error, where, fields, "cannot make it")]) from error
    tied = getattr(network, "all_tied_weights_keys", None) or {}
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name not in tied}
    directory.mkdir(parents=True)
    config.architectures = [type(network).__name__]
    (directory / "config.json").write_text(config.to_json_string(use_diff=False), "utf-8")
    _write_holes(directory / "model.safetensors", shapes, _NAMES[dtype])
    return directory


def initial_shape(config: str | Mapping[str, Any], settings: Mapping[str, object]) -> dict[str, Any]:
    """The configuration of what `surgery train init CONFIG` makes. Raises ConfigError, TaskError."""
    loaded = load(InitConfig, config, settings, {"out": ""})
    words = make_task(loaded.task, loaded.parameters).words
    tokens = len((PAD, END, ANSWER, UNKNOWN, *words))
    return {**loaded.architecture, "model_type": loaded.model_type, "dtype": loaded.dtype, "vocab_size": tokens}


def _write_holes(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file whose tensors are a hole."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        elements = 1
        for size in shape:
            elements *= size
        start, end = end, end + DTYPES[dtype].nbytes(elements)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % _ALIGNED)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
