"""From a checkpoint's files to a network of transformers, with every tensor from the files."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from evalkit.engines.base import Model
from evalkit.errors import EngineError, first_line
from surgery.wording import quoted


def load(model: Model, device: str, dtype: str, attention: str | None) -> Any:
    """The checkpoint's causal language model on the device, ready to answer; `dtype` may be `auto`.

    The class is the one that `config.json` names, so that a multimodal checkpoint is loaded whole. Code that a
    checkpoint brings is never run, nor a pickle read. Raises EngineError.
    """
    import torch

    assert model.path is not None
    _check_files(model)
    network_class = _network_class(model)
    try:
        network, report = network_class.from_pretrained(
            model.path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, with both shapes
            output_loading_info=True,
        )
        _check_report(model.name, report)
        for config in (network.config, network.config.get_text_config()):
            if getattr(config, "output_router_logits", False):
                config.output_router_logits = False  # a loss of routers, which fails where only some logits are kept
        network = network.to(device).eval()
    except EngineError:
        raise
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"`{model.name}` does not fit into the memory of `{device}`; set the option `dtype` to `bfloat16`, or use "
            "`--engine vllm`, which divides a model among GPUs"
        ) from error
    except Exception as error:  # files, kernels, quantisers: each raises what it likes
        raise EngineError(
            f"`{model.name}`: transformers cannot load it ({first_line(error)}); check `config.json` and the weights, "
            "`surgery inspect` lists them"
        ) from error
    return network


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or reports of transformers meanwhile; afterwards as before."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_files(model: Model) -> None:
    assert model.path is not None
    if not (model.path / "config.json").is_file():
        raise EngineError(
            f"`{model.name}` has no `config.json` in `{model.path}`; copy it from the model it was made from"
        )
    if not any(model.path.glob("*.safetensors")):
        pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in model.path.glob(kind))
        if pickles:
            raise EngineError(
                f"`{model.name}` holds pickled weights (`{pickles[0]}`), which can run code when they are loaded; "
                "convert them to safetensors"
            )
        raise EngineError(
            f"`{model.name}` has no weights: no `*.safetensors` in `{model.path}`; save it anew, or complete the copy"
        )


def _network_class(model: Model) -> Any:
    """The class of transformers that `config.json` names, which must be a decoder with a cache."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # an unknown `model_type`, bad JSON, values that the model's own checks refuse
        raise EngineError(
            f"`{model.name}`: transformers {transformers.__version__} does not take its `config.json` "
            f"({first_line(error)}); correct it, or install a version that knows the model"
        ) from error
    named = list(config.architectures or [])
    if not named:
        chosen = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    else:
        chosen = getattr(transformers, named[0], None)
    if chosen is None:
        what = f"the architecture `{named[0]}`" if named else f"a causal language model of type `{config.model_type}`"
        raise EngineError(
            f"`{model.name}`: transformers {transformers.__version__} does not have {what}; install a version that "
            "does, or use `--engine vllm`"
        )
    inputs = inspect.signature(chosen.forward).parameters if hasattr(chosen, "forward") else {}
    decoder = hasattr(chosen, "can_generate") and chosen.can_generate() and not config.is_encoder_decoder
    if not decoder or not {"past_key_values", "cache_params"} & set(inputs):
        raise EngineError(
            f"`{model.name}`: `{chosen.__name__}` is no decoder that continues texts; expected a causal language model "
            "like `LlamaForCausalLM` in `architectures` of `config.json`"
        )
    return chosen


def _check_report(name: str, report: Mapping[str, Any]) -> None:
    """Transformers fills what is missing with random numbers, and drops what it does not know: errors here."""
    faults = []
    if report["missing_keys"]:
        faults.append(f"it lacks {quoted(sorted(report['missing_keys']))}")
    if report["mismatched_keys"]:
        shapes = [f"`{key}` is {list(found)} and not {list(said)}" for key, found, said in report["mismatched_keys"]]
        faults.append(", ".join(sorted(shapes)[:5]) + (" and so on" if len(shapes) > 5 else ""))
    if report["unexpected_keys"]:
        faults.append(f"nothing takes its {quoted(sorted(report['unexpected_keys']))}")
    faults += map(str, report.get("error_msgs") or [])
    if faults:
        raise EngineError(
            f"`{name}`: its weights do not fit its `config.json`: {'; '.join(faults)}; complete the weights, or "
            "correct `config.json`"
        )
