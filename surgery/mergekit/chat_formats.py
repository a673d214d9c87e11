"""The chat formats that mergekit knows by name, as Jinja templates written after the formats' descriptions.

transformers renders templates with `trim_blocks` and `lstrip_blocks`, as these expect. mergekit's own templates of some
formats put space where these have none, or none where they have some (`DIFFERENT`).
"""

from __future__ import annotations

from surgery.output_section import MOST_COMMON
from surgery.wording import quoted, show

AUTO = "auto"
SHORTEST = 20  # characters of a template, for mergekit

_END = "{% endfor %}{% if add_generation_prompt %}"

FORMATS = {
    "alpaca": (
        "{% set titles = {'user': 'Instruction', 'assistant': 'Response', 'user_context': 'Input'} %}"
        "{% set system = messages | selectattr('role', 'equalto', 'system') | list %}"
        "{% set asked = add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
        "{% if system %}{{ system[-1]['content'] | trim }}{% endif %}{{ '\\n\\n' }}"
        "{% for message in messages if message['role'] in titles %}"
        "{{ '### ' + titles[message['role']] + ':\\n' + message['content'] | trim }}"
        "{% if not loop.last or asked %}{{ '\\n\\n' }}{% endif %}"
        "{% endfor %}{% if asked %}{{ '### Response:\\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        + _END
        + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "exaone": (
        "{% if messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
        "{% for message in messages %}{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{{ '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}" + _END + "{{ '[|assistant|]' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
        + _END
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{% set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
        "{{ bos_token }}{% for message in (messages[1:] if system else messages) %}"
        "{% if message['role'] != ['user', 'assistant'][loop.index0 % 2] %}"
        "{{ raise_exception('Expected user and assistant in turns, after a system message or without.') }}"
        "{% endif %}{% if message['role'] == 'user' %}"
        "{{ ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
}
DIFFERENT = {
    "alpaca": "mergekit's has no line break between the last message and `### Response:`",
    "exaone": "mergekit's also puts its indentation and line breaks into the text",
    "llama3": "mergekit's puts a line break after each message",
}


def check_template(text: str) -> str:
    """The `chat_template` of a file as it is. Raises ValueError where mergekit refuses it."""
    if text and text != AUTO and text not in FORMATS and (len(text) < SHORTEST or "{" not in text):
        raise ValueError(f"found {show(text)}; expected `{AUTO}`, a template in Jinja, or one of {quoted(FORMATS)}")
    return text


def template_of(text: str) -> str:
    """What `output.chat_template` is for the `chat_template` of a file."""
    return MOST_COMMON if text == AUTO else FORMATS.get(text, text)
