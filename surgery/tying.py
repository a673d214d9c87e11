"""Whether a model's output head is its token embedding, as its configuration and its tensors say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from surgery.anatomy import Anatomy

_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# Where configurations of multimodal models keep that of the language model.
TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")


def is_tied(config: Mapping[str, object], found: Anatomy) -> bool:
    """Whether they say so of a model with this anatomy, whose own `tied` is not looked at."""
    whole, text = _flag(config), _text_flag(config)
    if whole is True:
        return True
    # transformers lets a true flag of the language model overrule the whole's false, which is often a
    # default; a head that is stored all the same says that false was meant.
    if text is True and (whole is None or found.head is None):
        return True
    if whole is False or text is False:
        return False
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    generative = not isinstance(first, str) or first.endswith(_GENERATIVE)
    return generative and found.head is None and found.embedding is not None


def _flag(config: Mapping[str, object]) -> bool | None:
    value = config.get("tie_word_embeddings")
    return value if isinstance(value, bool) else None


def _text_flag(config: Mapping[str, object]) -> bool | None:
    """The flag of the language model's configuration, or of one nested in that."""
    for nested in (config.get(key) for key in TEXT_CONFIGS):
        if isinstance(nested, dict):
            flag = _flag(nested)
            flag = _text_flag(nested) if flag is None else flag
            if flag is not None:
                return flag
    return None
