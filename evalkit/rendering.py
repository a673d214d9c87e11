"""From prompts to token ids and back, by a checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evalkit.engines.base import Model, Prompt
from evalkit.errors import EngineError, first_line
from surgery.tying import TEXT_CONFIGS
from surgery.wording import quoted

# Keys under which configurations tell how many positions a model has, the nested ones of multimodal models included.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
# What templates take for today (Llama 3.2's write it into every prompt): results must not change overnight. It is the
# day that Llama 3's own templates fall back to where nobody tells them the date.
TODAY = datetime(2024, 7, 26)
_ANSWER = "4815162342"  # what no template trims, turns to lower case or writes by itself
_TEMPLATE_ADVICE = "give one with `--chat-template FILE`, or send the prompts as plain text with `--no-chat`"


def renderer_versions() -> dict[str, str]:
    """The packages that a prompt's tokens depend on, and their versions. Raises PackageNotFoundError."""
    return {name: version(name) for name in ("transformers", "tokenizers")}


class Renderer:
    """The tokenizer of a checkpoint, with the chat template in force.

    Local engines share it, so that each gives a model the same tokens. `chat_template` replaces the tokenizer's own;
    it may also be the name of one, where the tokenizer has several. The text of special tokens in a prompt or an
    answer becomes those tokens, as everywhere with these tokenizers: templates are built on it.
    Raises EngineError where the checkpoint has no tokenizer.
    """

    def __init__(self, model: Model, chat_template: str | None = None) -> None:
        from transformers import AutoTokenizer

        assert model.path is not None
        self.name = model.name
        _check_tokenizer(model.name, model.path)
        self.config = _json(model.path / "config.json")
        try:
            # without `trust_remote_code` set, a checkpoint that brings code would have the user asked on the terminal
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                model.path, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # a broken file raises whatever its parser raises
            raise EngineError(
                f"`{model.name}`: its tokenizer cannot be loaded ({first_line(error)}); copy the tokenizer files of "
                "the model it was made from"
            ) from error
        self._template = chat_template
        self._start, self._extra = _frame(self.tokenizer)
        self.end: int | None = self.tokenizer.eos_token_id
        self.stops = _stops(self._configs(), _json(model.path / "generation_config.json"), self.end)

    @property
    def context(self) -> int | None:
        """The number of positions that the model has, where its configuration tells."""
        for config in self._configs():
            found = [config[key] for key in _CONTEXT if isinstance(config.get(key), int)]
            if found:
                return max(int(found[0]), _stretched(config))
        return None

    def tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of plain text, with the tokenizer's own first token, or of messages by the chat template.

        Never empty: for an empty text, the token that begins or else ends texts stands in, as in lm-evaluation-harness.
        Raises EngineError where there is no such token, no template, or the template fails.
        """
        ids = self._plain(prompt) if isinstance(prompt, str) else self._chat([dict(message) for message in prompt])
        if not ids:
            raise EngineError(f"`{self.name}`: a prompt has no tokens; send one that has text")
        return ids

    def answer(self, text: str, end: bool, chat: bool = False) -> list[int]:
        """Token ids of an answer as it follows a prompt; with `end`, the token that ends it as well.

        After messages (`chat`) that is the one that the chat template puts right after an answer, if it is among
        `stops` (`<end_of_turn>` for Gemma); in all other cases the tokenizer's end of sequence.
        """
        return [*self._pieces(text), *self._end(end, chat)]

    def pair(self, prompt: Prompt, answer: str, end: bool) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of the answer that is to be scored after it.

        After messages the two are tokenised apart, since that is how a model that answers goes on. After plain text
        they are tokenised as one text and cut where the prompt's own tokens end, since a continuation may begin in
        the middle of a line, where some tokenizers (SentencePiece's) would put a space before it; where a token
        reaches over the border, they too are tokenised apart. Which token is the `end` says `answer`.
        """
        first = self.tokens(prompt)
        if isinstance(prompt, str) and prompt and answer:
            whole = self._plain(prompt + answer)
            if len(whole) > len(first) and whole[: len(first)] == first:
                return first, [*whole[len(first) :], *self._end(end, chat=False)]
        return first, self.answer(answer, end, chat=not isinstance(prompt, str))

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, without special ones."""
        # the clean-up that old tokenizers ask for takes the space before a full stop out of the answer
        decoded: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded

    def room(self, prompt_tokens: int, new_tokens: int) -> bool:
        """Whether the model has positions for the prompt and as many new tokens."""
        return self.context is None or prompt_tokens + new_tokens <= self.context

    def _pieces(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        if self._extra:  # some tokenizers (T5's) end every text; a prompt goes on
            ids = ids[: -self._extra]
        n = len(self._start)
        if n and ids[n : 2 * n] == self._start:  # the text has its first token already, from a template
            ids = ids[n:]
        if ids:
            return ids
        return [id_ for id_ in (self.tokenizer.bos_token_id, self.end) if id_ is not None][:1]

    def _chat(self, messages: list[dict[str, str]]) -> list[int]:
        # text that a template gave has its special tokens, the first one included: none are added
        return list(self._rendered(messages, add_generation_prompt=True, return_dict=False))

    def _rendered(self, messages: list[dict[str, str]], **options: Any) -> Any:
        own = self.tokenizer.chat_template
        if self._template is None and not own:
            raise EngineError(f"`{self.name}` has no chat template; {_TEMPLATE_ADVICE}")
        if self._template is None and isinstance(own, dict) and "default" not in own:
            raise EngineError(
                f"`{self.name}` has several chat templates ({quoted(sorted(own))}) and none called `default`; "
                f"{_TEMPLATE_ADVICE}"
            )
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenizer_kwargs={"verbose": False},  # no advice about long texts
                strftime_now=TODAY.strftime,  # before transformers' own of that name
                **options,
            )
        except Exception as error:  # templates are programs: they raise what they like
            whose = "its chat template" if self._template is None else "the chat template given"
            raise EngineError(
                f"`{self.name}`: {whose} fails ({first_line(error)}); {_TEMPLATE_ADVICE.replace('one', 'another', 1)}"
            ) from error

    def _end(self, wanted: bool, chat: bool) -> list[int]:
        if not wanted:
            return []
        end = self._chat_end if chat else self.end
        if end is None:
            raise EngineError(f"`{self.name}`: its tokenizer has no end-of-sequence token; set `eos_token` in it")
        return [end]

    @cached_property
    def _chat_end(self) -> int | None:
        """The token that ends an answer after messages, found on a short conversation."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
        try:
            rendered: str = self._rendered(messages, tokenize=False, add_generation_prompt=False)
        except EngineError:  # a template may know prompts alone
            return self.end
        _, found, rest = rendered.rpartition(_ANSWER)
        after = self._pieces(rest)[:1] if found else []
        return after[0] if after and after[0] in self.stops else self.end

    def _configs(self) -> Iterator[Mapping[str, Any]]:
        """The configuration and those of the language model inside it."""
        for config in (self.config, *(self.config.get(key) for key in TEXT_CONFIGS)):
            if isinstance(config, Mapping):
                yield config


def _check_tokenizer(name: str, path: Path) -> None:
    """Say plainly that there is no tokenizer: transformers' own message offers a dozen other causes."""
    known = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
    found = [*path.glob("*.tiktoken"), *path.glob("tokenization_*.py")]
    if not found and not any((path / file).is_file() for file in known):
        raise EngineError(
            f"`{name}` has no tokenizer: no `tokenizer.json`, `tokenizer.model` or the like in `{path}`; copy the "
            "tokenizer files of the model it was made from"
        )


def _frame(tokenizer: Any) -> tuple[list[int], int]:
    """The tokens that a tokenizer puts before every text, and how many it puts after; found on a letter."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    for i in range(len(framed) - len(inner) + 1):
        if inner and framed[i : i + len(inner)] == inner:
            return framed[:i], len(framed) - i - len(inner)
    return [], 0


def _stops(configs: Iterator[Mapping[str, Any]], generation: Mapping[str, Any], end: int | None) -> tuple[int, ...]:
    """The tokens that end an answer, of all the places that may name them."""
    named = [generation.get("eos_token_id"), *(config.get("eos_token_id") for config in configs), end]
    flat = [id_ for value in named for id_ in (value if isinstance(value, list) else [value])]
    return tuple(sorted({id_ for id_ in flat if isinstance(id_, int)}))


def _stretched(config: Mapping[str, Any]) -> int:
    """The positions that YaRN's rotary embeddings give, which may be more than the configuration's number of them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) != "yarn":
        return 0
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if not isinstance(factor, int | float) or not isinstance(original, int):
        return 0
    try:
        return int(factor * original)
    except (OverflowError, ValueError):  # no number of positions: infinity, NaN
        return 0


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:  # the last where it is nested thousands deep
        raise EngineError(f"cannot read `{path}`: {first_line(error)}") from error
    return value if isinstance(value, dict) else {}
