"""From prompts to token ids and back, by a checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.engines.base import Model, Prompt
from evalkit.errors import EngineError

# Keys under which configurations tell how many positions a model has, the nested ones of multimodal models included.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")


class Renderer:
    """The tokenizer of a checkpoint, with the chat template in force.

    Local engines share it, so that each gives a model the same tokens. `chat_template` replaces the tokenizer's own.
    Raises EngineError where the checkpoint has no tokenizer.
    """

    def __init__(self, model: Model, chat_template: str | None = None) -> None:
        from transformers import AutoTokenizer

        assert model.path is not None
        self.name = model.name
        _check_tokenizer(model.name, model.path)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model.path)
        except Exception as error:  # a broken file raises whatever its parser raises
            raise EngineError(
                f"`{model.name}`: its tokenizer cannot be loaded ({_short(error)}); copy the tokenizer files of the "
                "model it was made from"
            ) from error
        self._template = chat_template
        self.config = _json(model.path / "config.json")
        self.end: int | None = self.tokenizer.eos_token_id
        self.stops = _stops(self.config, _json(model.path / "generation_config.json"), self.end)

    @property
    def context(self) -> int | None:
        """The number of positions that the model has, where its configuration tells."""
        for config in (self.config, *(self.config.get(key) for key in _TEXT_CONFIGS)):
            if isinstance(config, dict):
                found = [config[key] for key in _CONTEXT if isinstance(config.get(key), int)]
                if found:
                    return int(found[0])
        return None

    def tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of plain text (with the tokenizer's own first token), or of messages by the chat template."""
        if isinstance(prompt, str):
            ids: list[int] = self.tokenizer(prompt)["input_ids"]
            return _without_end(ids, self.end)
        if self._template is None and self.tokenizer.chat_template is None:
            raise EngineError(
                f"`{self.name}` has no chat template; give one with `--chat-template FILE`, or send the prompts as "
                "plain text with `--no-chat`"
            )
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(prompt), chat_template=self._template, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # templates are programs: they raise what they like
            raise EngineError(
                f"`{self.name}`: its chat template fails ({_short(error)}); give another with `--chat-template FILE`"
            ) from error
        return list(rendered)

    def answer(self, text: str, end: bool) -> list[int]:
        """Token ids of an answer as it follows a prompt; with `end`, the token that ends it as well."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if end and self.end is None:
            raise EngineError(f"`{self.name}`: its tokenizer has no end-of-sequence token; set `eos_token` in it")
        return [*ids, self.end] if end and self.end is not None else ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, without special ones."""
        decoded: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded

    def room(self, prompt_tokens: int, new_tokens: int) -> bool:
        """Whether the model has positions for the prompt and as many new tokens."""
        return self.context is None or prompt_tokens + new_tokens <= self.context


def _check_tokenizer(name: str, path: Path) -> None:
    """Say plainly that there is no tokenizer: transformers' own message offers a dozen other causes."""
    known = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
    found = [*path.glob("*.tiktoken"), *path.glob("tokenization_*.py")]
    if not found and not any((path / file).is_file() for file in known):
        raise EngineError(
            f"`{name}` has no tokenizer: no `tokenizer.json`, `tokenizer.model` or the like in `{path}`; copy the "
            "tokenizer files of the model it was made from"
        )


def _without_end(ids: list[int], end: int | None) -> list[int]:
    """Some tokenizers (T5's) end every text; a prompt goes on."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == end else ids


def _stops(config: Mapping[str, Any], generation: Mapping[str, Any], end: int | None) -> tuple[int, ...]:
    """The tokens that end an answer, of all the places that may name them."""
    named = [generation.get("eos_token_id"), config.get("eos_token_id"), end]
    flat = [id_ for value in named for id_ in (value if isinstance(value, list) else [value])]
    return tuple(sorted({id_ for id_ in flat if isinstance(id_, int)}))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read `{path}`: {_short(error)}") from error
    return value if isinstance(value, dict) else {}


def _short(error: Exception) -> str:
    """The first line of a library's message, which may run over a page."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
