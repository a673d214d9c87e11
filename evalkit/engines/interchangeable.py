"""Which checkpoints can be loaded over each other in a running engine: all but the values of their tensors is equal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.errors import CheckpointError

# Of a configuration, what does not change what an engine of ours does: prompts and stop tokens are handed to it.
_INDIFFERENT = {"_name_or_path", "transformers_version", "use_cache", "bos_token_id", "eos_token_id"}
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def blueprint(path: Path) -> str | None:
    """What an engine is built after, as text: configuration, and names, dtypes and shapes of the tensors.

    Checkpoints of one blueprint may be loaded over each other. None for one that must have an engine of its own:
    - its headers cannot be read, or tensors are of other dtypes than float32, float16 and bfloat16 (quantised);
    - it brings code or processors of its own, which may derive anything from anything;
    - it stores an output head although its configuration ties it to the embedding. vLLM then looks at the values:
      a head equal to the embedding shares its memory, and two different ones loaded into it leave the last of them.
    """
    checkpoint = _open(path)
    if checkpoint is None:
        return None
    tensors = {name: (info.dtype.name, info.shape) for name, info in checkpoint.tensors.items()}
    quantised = "quantization_config" in checkpoint.config or any(dtype not in _PLAIN for dtype, _ in tensors.values())
    doubtful_head = checkpoint.tied and checkpoint.anatomy.head is not None
    if quantised or doubtful_head or any(path.glob("*.py")):
        return None
    return json.dumps([_relevant(checkpoint.config), tensors], sort_keys=True)


def stored_dtype(path: Path) -> str | None:
    """The dtype of most elements (`float32`, `float16`, `bfloat16`), or None for others and where headers fail."""
    checkpoint = _open(path)
    if checkpoint is None:
        return None
    elements: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        elements[info.dtype.name] += info.elements
    return _PLAIN.get(elements.most_common(1)[0][0])


def _open(path: Path) -> Checkpoint | None:
    """None where this cannot be opened: whether an engine can is for the engine to say."""
    try:
        return open_checkpoint(path)
    except CheckpointError:
        return None


def _relevant(config: Any) -> Any:
    """A configuration without what makes no difference, and with one name for the dtype, which has two."""
    if not isinstance(config, Mapping):
        return config
    return {
        "dtype" if key == "torch_dtype" else key: _relevant(value)
        for key, value in config.items()
        if key not in _INDIFFERENT
    }
