"""Chat templates that mergekit's files name, rendered as transformers does, and chosen as mergekit chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

import surgery
from surgery.mergekit import convert
from surgery.mergekit.chat_formats import FORMATS
from surgery.yaml_source import read_yaml
from tests.pairs import llama, write
from tests.tiny_tokenizers import save, words

SYSTEM, USER, ANSWER = ({"role": r, "content": c} for r, c in [("system", "S"), ("user", " U "), ("assistant", "A")])
LINEAR = """\
models:
  - {model: MODELS/one, parameters: {weight: 1}}
  - {model: MODELS/two, parameters: {weight: 1}}
  - {model: MODELS/three, parameters: {weight: 1}}
merge_method: linear
"""


def rendered(template: str, *messages: dict[str, str], prompt: bool = False) -> str:
    """As transformers renders templates."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    made = environment.from_string(template, {"raise_exception": refuse})
    return made.render(messages=list(messages), add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")


def test_chatml() -> None:
    """Each message between two tokens, a line break after it."""
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n U <|im_end|>\n"
    assert rendered(FORMATS["chatml"], SYSTEM, USER) == text
    assert rendered(FORMATS["chatml"], SYSTEM, USER, prompt=True) == f"{text}<|im_start|>assistant\n"


def test_llama3() -> None:
    """The role in a header, the text without space around it, no line break after the end of a turn."""
    text = "<s><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    answer = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert rendered(FORMATS["llama3"], USER) == text
    assert rendered(FORMATS["llama3"], USER, ANSWER, prompt=True) == f"{text}{answer}A<|eot_id|>{answer}"


def test_exaone() -> None:
    """An empty system message where there is none; only a user's turn ends without a token."""
    text = "[|system|][|endofturn|]\n[|user|] U \n[|assistant|]A[|endofturn|]\n"
    assert rendered(FORMATS["exaone"], USER, ANSWER) == text
    text = "[|system|]S[|endofturn|]\n[|user|] U \n[|assistant|]"
    assert rendered(FORMATS["exaone"], SYSTEM, USER, prompt=True) == text


def test_alpaca() -> None:
    """A heading for each message, an empty line between messages, and before the heading of the answer."""
    text = "S\n\n### Instruction:\nU\n\n### Response:\n"
    assert rendered(FORMATS["alpaca"], SYSTEM, USER, prompt=True) == text
    for prompt in (False, True):
        assert rendered(FORMATS["alpaca"], SYSTEM, USER, ANSWER, prompt=prompt) == f"{text}A"
    assert rendered(FORMATS["alpaca"], USER) == "\n\n### Instruction:\nU"
    given = {"role": "user_context", "content": "I"}
    assert rendered(FORMATS["alpaca"], USER, given, USER) == (
        "\n\n### Instruction:\nU\n\n### Input:\nI\n\n### Instruction:\nU"
    )


def test_mistral() -> None:
    """Instructions in brackets, the system message in the first; users and assistants in turns, or an error."""
    text = "<s> [INST] S\n\n U  [/INST] A</s> [INST]  U  [/INST]"
    assert rendered(FORMATS["mistral"], SYSTEM, USER, ANSWER, USER) == text
    for wrong in ([ANSWER], [USER, USER], [SYSTEM, ANSWER]):
        with pytest.raises(TemplateError, match="in turns"):
            rendered(FORMATS["mistral"], *wrong)


@pytest.mark.parametrize(
    ("asked", "expected", "notes"),
    [
        ("auto", "most common", 0),
        ("chatml", FORMATS["chatml"], 0),
        ("llama3", FORMATS["llama3"], 1),
        ("alpaca", FORMATS["alpaca"], 1),
        ("\"{{ messages[0]['content'] }}\"", "{{ messages[0]['content'] }}", 0),
        ('""', None, 0),
        ("", None, 0),
    ],
)
def test_conversion(asked: str, expected: str | None, notes: int) -> None:
    """A recipe of ours has the text itself; a note tells where mergekit's differs."""
    made = convert(read_yaml(f"{LINEAR}chat_template: {asked}\n", "merge.yml"))
    assert isinstance(made.data, dict)
    assert made.data.get("output", {}).get("chat_template") == expected
    assert [str(note).partition(": ")[0] for note in made.notes] == ["merge.yml:6 chat_template"] * notes
    assert read_yaml(made.text, "").data == made.data


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("auto", "{{ 'tuned' }}\n"), ("chatml", FORMATS["chatml"]), ("'{% if true %}{{ 1 + 1 }}{% endif %}'", None)],
)
def test_running(tmp_path: Path, asked: str, expected: str | None) -> None:
    """The output's tokenizer has it, in all files that say so; of the models' the most common, however it is stored."""
    found: dict[str, Any] = {"one": "{{ 'base' }}", "two": [{"name": "default", "template": "{{ 'tuned' }}\n"}]}
    for name in ("one", "two", "three"):
        save(words(["a", "b", "c"]), write(tmp_path / name, llama(layers=1, vocabulary=3, dtype=torch.float32)))
        settings = {"model_max_length": 5, **({"chat_template": found[name]} if name in found else {})}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "three" / "chat_template.jinja").write_text("{{ 'tuned' }}")
    text = LINEAR.replace("MODELS", str(tmp_path)) + f"chat_template: {asked}\n"
    (tmp_path / "merge.yml").write_text(text)
    out = surgery.apply(tmp_path / "merge.yml", (), tmp_path / "out").out
    expected = expected or "{% if true %}{{ 1 + 1 }}{% endif %}"
    assert (out / "chat_template.jinja").read_text() == expected
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings == {"model_max_length": 5, "chat_template": expected}
    surgery.verify(out)
