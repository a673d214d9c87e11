"""A checkpoint to begin with from nothing: random weights of any architecture, and a tokenizer of a task's words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evalkit.engines.loading import quiet
from evalkit.errors import first_line
from surgery.errors import Fault
from surgery.whole_file import as_json, write_whole
from surgery.wording import show, suggestion
from trainers.checkpoints import FORMAT, MANIFEST, digests, versions
from trainers.config import InitConfig
from trainers.errors import ConfigError, DataError, RunError
from trainers.tasks import configured_task

# Each special token has a place of its own in the vocabulary, before the task's words.
PAD, END, ANSWER, UNKNOWN = "<pad>", "<end>", "<answer>", "<unknown>"
# A question is followed by the token that asks for an answer, an answer by the one that ends it.
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} "
    f"{{{{ '{END}' if message['role'] == 'assistant' else '{ANSWER}' }}}} "
    "{% endfor %}"
)
_OURS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "dtype", "model_type")  # not to be chosen

_SIZES = (  # of which transformers takes 0, and makes a network that is none
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "n_embd", "n_head", "n_layer", "n_positions",
)  # fmt: skip


def make_initial(config: InitConfig) -> dict[str, Any]:
    """Write the checkpoint of a configuration, whole or not at all; gives its directory and sizes as plain data.

    Raises DataError, ConfigError for an architecture that transformers does not make, and RunError where the directory
    exists or cannot be written.
    """
    out = Path(config.out)
    if os.path.lexists(out):
        raise RunError(f"`{out}` exists already; choose another `--out`, or remove it")
    words = _words(config)
    with quiet():
        tokenizer = _tokenizer(words)
        network = _network(config, len(tokenizer))
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with quiet():
            network.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        for weights in partial.glob("*.safetensors"):  # which safetensors lets nobody else read
            shutil.copymode(partial / "config.json", weights)
        write_whole(partial / MANIFEST, as_json(_manifest(config, partial)))
        partial.replace(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"cannot write the checkpoint `{out}`: {error.strerror or error}; make room, or choose another `--out`"
        ) from error
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"out": config.out, "parameters": parameters, "tokens": len(tokenizer)}


def _words(config: InitConfig) -> tuple[str, ...]:
    """The words of the task. Raises DataError."""
    words = configured_task(config.task, config.parameters).words
    if not words:
        raise DataError([Fault("task", f"`{config.task}` is not made of a few words; expected a task that is")])
    return words


def _tokenizer(words: Sequence[str]) -> Any:
    """One token a word; texts are split at spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate((PAD, END, ANSWER, UNKNOWN, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[ANSWER],
        clean_up_tokenization_spaces=False,
    )
    found.chat_template = TEMPLATE
    return found


def _network(config: InitConfig, tokens: int) -> Any:
    """The network with random weights, as transformers draws them. Raises ConfigError."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    architecture = _architecture(config.model_type, config.architecture, tokens)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
    except Exception as error:  # whatever an architecture raises for sizes that do not fit
        raise ConfigError([refusal(error, "architecture", config.architecture, "cannot make it")]) from error
    network.generation_config = GenerationConfig(eos_token_id=architecture.eos_token_id, pad_token_id=0)
    return network.to(getattr(torch, config.dtype))


def _architecture(model_type: str, fields: Mapping[str, Any], tokens: int) -> Any:
    """The configuration of transformers. Raises ConfigError."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as LANGUAGE_MODELS

    if model_type not in LANGUAGE_MODELS:
        hint = suggestion(model_type, sorted(LANGUAGE_MODELS), "transformers' language models")
        raise ConfigError([Fault("model_type", f"found `{model_type}`; {hint}")])
    known = sorted(AutoConfig.for_model(model_type).to_dict().keys() - set(_OURS))
    faults = []
    for field, value in fields.items():
        if field in _OURS:
            faults.append(Fault(f"architecture.{field}", "it follows from the task and the other keys; leave it out"))
        elif field not in known:
            faults.append(Fault(f"architecture.{field}", f"unknown field; {suggestion(field, known, 'the fields')}"))
        elif field in _SIZES and type(value) is int and value < 1:
            faults.append(Fault(f"architecture.{field}", f"found {show(value)}; expected 1 or more"))
    if faults:
        raise ConfigError(faults)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    try:
        return AutoConfig.for_model(model_type, **{**fields, **ids, "vocab_size": tokens})
    except Exception as error:  # its own checks of types and sizes
        raise ConfigError([refusal(error, "architecture", fields, "refuses it")]) from error


def refusal(error: Exception, where: str, fields: Mapping[str, Any], what: str) -> Fault:
    """What transformers says of a configuration: the error that its validators wrap, and whose value is unknown."""
    from transformers.activations import ACT2FN

    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    if isinstance(inner, KeyError):  # of a table, such as that of the activations, and nothing but the key
        for name, value in fields.items():
            if inner.args == (value,):
                known = f"; {suggestion(str(value), ACT2FN, 'the activations')}" if "act" in name else ""
                return Fault(f"{where}.{name}", f"found {show(value)}, which transformers does not know{known}")
    return Fault(where, f"transformers {what}: {first_line(inner)}")


def _manifest(config: InitConfig, directory: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "trainer": "init",
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "files": digests(directory),
    }
