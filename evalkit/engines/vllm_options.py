"""The options of vLLM, known and checked without importing it, which takes ten seconds."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evalkit.errors import EngineError
from surgery.wording import show, suggestion

# Decided by the engine: which model, in what form its results come, and what putting in weights relies on.
OWNED = (
    "model", "tokenizer", "skip_tokenizer_init", "tokenizer_mode", "chat_template", "runner", "convert", "worker_cls",
    "worker_extension_cls", "logprobs_mode", "generation_config", "data_parallel_size", "use_tqdm_on_load",
)  # fmt: skip

# Those that cost time or memory, and change answers by rounding at most.
COSTS = frozenset({
    "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "gpu_memory_utilization",
    "kv_cache_memory_bytes", "cpu_offload_gb", "block_size", "enable_prefix_caching", "max_num_seqs",
    "max_num_batched_tokens", "enable_chunked_prefill", "enforce_eager", "compilation_config",
    "cudagraph_capture_sizes", "max_cudagraph_capture_size", "async_scheduling", "disable_custom_all_reduce",
    "disable_log_stats", "download_dir", "max_parallel_loading_workers", "safetensors_load_strategy",
})  # fmt: skip


def parse(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with text as JSON values where it is such (`true`, `0.9`, `{"a": 1}`).

    Raises EngineError for one that vLLM does not have, or that is not the user's to set.
    """
    known = [name for name in _fields() if name not in OWNED]
    for name in options:
        if name in OWNED:
            raise EngineError(f"the option `{name}` of vLLM is set by this engine; leave it out")
        if known and name not in known:
            raise EngineError(f"vLLM has no option `{name}`; {_nearest(name, known)}")
    parsed = {name: _value(value) for name, value in options.items()}
    length = parsed.get("max_model_len", 1)
    if not isinstance(length, int) or length < 1:
        raise EngineError(f"the option `max_model_len` of vLLM: found {show(length)}; expected a number of tokens")
    return parsed


def _nearest(name: str, known: list[str]) -> str:
    """The end of a message: names that share a word with the wrong one come before all others."""
    words = set(name.split("_"))
    related = sorted(known, key=lambda each: -len(words & set(each.split("_"))))
    return suggestion(name, related, "the options")


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    folded = value.lower() if value.lower() in ("true", "false", "null", "none") else value
    try:
        return None if folded == "none" else json.loads(folded)
    except ValueError:
        return value


def _fields() -> list[str]:
    """The names that `vllm.LLM` takes: the fields of `EngineArgs`, read from its source; none where that is no more."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return []
    source = Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError):
        return []
    return [
        field.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]
