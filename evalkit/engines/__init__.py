"""The engines by name; each is imported when it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from evalkit.engines.base import Engine
from evalkit.errors import EngineError
from surgery.wording import show, suggestion

ENGINES = {
    "vllm": "vLLM in this process: fast, many checkpoints in one engine start",
    "transformers": "Hugging Face transformers: works on any machine",
    "openai:URL": "a running OpenAI-compatible server; a MODEL is a name that it serves",
}


def default_engine() -> str:
    """vLLM where it is installed, or else transformers."""
    return "vllm" if find_spec("vllm") is not None else "transformers"


def make_engine(spec: str, options: Mapping[str, Any], chat_template: str | None = None) -> Engine:
    """The engine that `spec` names. Raises EngineError for an unknown one and for options that it does not have."""
    if spec == "vllm":
        from evalkit.engines.vllm import VllmEngine

        return VllmEngine(options, chat_template)
    if spec == "transformers":
        from evalkit.engines.transformers import TransformersEngine

        return TransformersEngine(options, chat_template)
    kind, colon, url = spec.partition(":")
    if kind == "openai" and colon:
        from evalkit.engines.openai import OpenAIEngine

        if chat_template is not None:
            raise EngineError("`--chat-template` has no effect on a server; give it to the server when you start it")
        return OpenAIEngine(url, options)
    raise EngineError(f"unknown engine {show(spec)}; {suggestion(spec, ENGINES, 'the engines')}")
