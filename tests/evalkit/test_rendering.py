"""Prompts become the tokens that a checkpoint's own files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from evalkit.engines.base import Model
from evalkit.errors import EngineError
from evalkit.rendering import Renderer, renderer_versions
from tests.tiny_models import TEMPLATE, tokenizer

ASK = ({"role": "user", "content": "hi"},)
IDS = dict(tokenizer().get_vocab())


def ids(*tokens: str) -> list[int]:
    """Ids of special tokens by name, and of the characters of other texts."""
    return [i for token in tokens for i in ([IDS[token]] if token in IDS else [IDS[character] for character in token])]


def renderer(
    directory: Path,
    config: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    chat_template: str | None = TEMPLATE,
    frame: str | None = None,
    given: str | None = None,
    **tokenizer_config: Any,
) -> Renderer:
    """Of a directory with these files; `frame` is what the tokenizer puts around a text (`$A`)."""
    made = tokenizer(chat_template)
    if frame is not None:
        special = [(token, IDS[token]) for token in ("<pad>", "<end>")]
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    made.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **tokenizer_config}))
    return Renderer(Model("tiny", "0", directory), given)


def test_messages(tmp_path: Path) -> None:
    """A conversation is rendered by the tokenizer's template, and the answer's turn is opened."""
    conversation = (*ASK, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "?"})
    expected = ids("<user>", "hi", "<assistant>", "yo", "<end>", "<user>", "?", "<assistant>")
    assert renderer(tmp_path).tokens(conversation) == expected


def test_template_given_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    """`chat_template` wins, and the type of the ids is a plain list of integers."""
    found = renderer(tmp_path, given="{{ messages[0].content }}!").tokens(ASK)
    assert found == ids("hi!")
    assert type(found) is list
    assert all(type(i) is int for i in found)


def test_named_templates(tmp_path: Path) -> None:
    """Of several templates, `default` is in force, or the one whose name is given."""
    named: Any = {"default": "d{{ messages[0].content }}", "short": "s"}
    assert renderer(tmp_path / "a", chat_template=named).tokens(ASK) == ids("dhi")
    assert renderer(tmp_path / "b", chat_template=named, given="short").tokens(ASK) == ids("s")


@pytest.mark.parametrize("own", [True, False])
def test_the_date_stands_still(tmp_path: Path, own: bool) -> None:
    """Templates that write today's date write one day for ever, in macros too, as Llama 3's own do without a date."""
    template = (
        "{% macro today() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}"
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {{ today() }}{% endif %}"
    )
    found = renderer(tmp_path, chat_template=template) if own else renderer(tmp_path, given=template)
    assert found.text(found.tokens(ASK)) == "26 Jul 2024 2024-07-26"


def test_first_token_of_plain_text(tmp_path: Path) -> None:
    """Plain text gets the tokenizer's first token, once: a template may have written it already. Messages get none."""
    found = renderer(tmp_path, frame="<pad> $A", bos_token="<pad>")
    assert found.tokens("ab") == ids("<pad>", "ab")
    assert found.tokens("<pad>ab") == ids("<pad>", "ab")
    assert found.tokens("") == ids("<pad>")
    assert found.tokens(ASK) == ids("<user>", "hi", "<assistant>")
    assert found.answer("ab", end=False) == ids("ab")


def test_end_that_a_tokenizer_adds_is_taken_off(tmp_path: Path) -> None:
    """A prompt goes on; an end token that the prompt's own text has stays."""
    found = renderer(tmp_path, frame="$A <end>")
    assert found.tokens("ab") == ids("ab")
    assert found.tokens("ab<end>") == ids("ab", "<end>")


def test_end_in_a_prompt_stays(tmp_path: Path) -> None:
    """So it does where the tokenizer adds nothing."""
    assert renderer(tmp_path).tokens("ab<end>") == ids("ab", "<end>")


def test_empty_prompts(tmp_path: Path) -> None:
    """A token stands in for an empty text, the one that begins or ends texts; else the prompt is refused."""
    assert renderer(tmp_path / "a").tokens("") == ids("<end>")
    with pytest.raises(EngineError, match="a prompt has no tokens; send one that has text"):
        renderer(tmp_path / "b", eos_token=None).tokens("")
    with pytest.raises(EngineError, match="a prompt has no tokens"):
        renderer(tmp_path / "c", given="{% if false %}{% endif %}").tokens(ASK)


def test_answer(tmp_path: Path) -> None:
    """An answer has no first token, and the end only where it is asked for."""
    found = renderer(tmp_path)
    assert found.answer("ok", end=False) == ids("ok")
    assert found.answer("ok", end=True) == ids("ok", "<end>")


def test_answer_without_an_end_token(tmp_path: Path) -> None:
    """A tokenizer without an end cannot end an answer."""
    found = renderer(tmp_path, eos_token=None)
    assert found.stops == ()
    with pytest.raises(EngineError, match="`tiny`: its tokenizer has no end-of-sequence token; set `eos_token`"):
        found.answer("ok", end=True)


def test_pair(tmp_path: Path) -> None:
    """Prompt and answer follow each other, with one first token, after messages and after plain text."""
    found = renderer(tmp_path, frame="<pad> $A", bos_token="<pad>")
    assert found.pair(ASK, "ok", end=True) == (ids("<user>", "hi", "<assistant>"), ids("ok", "<end>"))
    assert found.pair("a", " b", end=False) == (ids("<pad>", "a"), ids(" b"))
    assert found.pair("", "b", end=False) == (ids("<pad>"), ids("b"))
    assert found.pair("a", "", end=False) == (ids("<pad>", "a"), [])


@pytest.mark.parametrize(
    ("after", "stops", "end"),
    [
        ("<pad>\n", [0, 1], "<pad>"),  # Gemma's way: the end of a turn, and another token for the end of texts
        ("<pad>\n", [1], "<end>"),  # no token that ends answers
        ("!<pad>", [0, 1], "<end>"),
        ("{{ raise_exception('no answers') }}", [0, 1], "<end>"),
        ("", [0, 1], "<end>"),
    ],
)
def test_the_template_says_what_ends_an_answer(tmp_path: Path, after: str, stops: list[int], end: str) -> None:
    """After messages the token that stands behind an answer, if it is one that ends answers; else the tokenizer's."""
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}" + after + "{% endif %}{% endfor %}"
    )
    found = renderer(tmp_path, generation={"eos_token_id": stops}, chat_template=template)
    assert found.pair(ASK, "ok", end=True) == (ids("hi"), ids("ok", end))
    assert found.pair(ASK, "ok", end=False) == (ids("hi"), ids("ok"))
    assert found.pair("hi", "ok", end=True) == (ids("hi"), ids("ok", "<end>"))
    assert found.pair("", "ok", end=True)[1] == ids("ok", "<end>")
    assert found.answer("ok", end=True, chat=True) == ids("ok", end)


def test_a_template_may_drop_answers_or_end_them_alone(tmp_path: Path) -> None:
    """Where the answer is not rendered its end is the tokenizer's; with no such token, the template's will do."""
    users = "{% for m in messages if m.role == 'user' %}{{ m.content }}<pad>{% endfor %}"
    both = {"generation": {"eos_token_id": [0, 1]}}
    assert renderer(tmp_path / "a", chat_template=users, **both).pair(ASK, "ok", end=True)[1] == ids("ok", "<end>")
    every = "{% for m in messages %}{{ m.content }}<pad>{% endfor %}"
    assert renderer(tmp_path / "b", chat_template=every, eos_token=None, **both).pair(ASK, "ok", end=True) == (
        ids("hi", "<pad>"),
        ids("ok", "<pad>"),
    )


def test_pair_cuts_one_text_where_its_tokens_allow(tmp_path: Path) -> None:
    """After plain text the answer's tokens are those of the whole text; apart, this tokenizer would add a space."""
    found = renderer(tmp_path)
    plain = found.tokenizer
    found.tokenizer = lambda text, **options: {
        "input_ids": plain(" " + text if options.get("add_special_tokens") is False else text)["input_ids"]
    }
    assert found.pair("a", "b", end=False) == (ids("a"), ids("b"))


def test_pair_with_a_token_across_the_border(tmp_path: Path) -> None:
    """Where a token reaches over the border, prompt and answer are tokenised apart."""
    found = renderer(tmp_path)
    plain = found.tokenizer
    found.tokenizer = lambda text, **_: {"input_ids": [99] if text == "ab" else plain(text)["input_ids"]}
    assert found.pair("a", "b", end=False) == (ids("a"), ids("b"))


def test_text(tmp_path: Path) -> None:
    """Special tokens have no text, and spaces stay, whatever clean-up the tokenizer asks for."""
    found = renderer(tmp_path, clean_up_tokenization_spaces=True)
    assert found.text(ids("<assistant>", "a . b", "<end>")) == "a . b"
    assert found.text([]) == ""


@pytest.mark.parametrize(
    ("config", "generation", "stops"),
    [
        ({}, None, [1]),
        ({"eos_token_id": 2}, None, [1, 2]),
        ({"eos_token_id": [2, 3]}, {"eos_token_id": 5}, [1, 2, 3, 5]),
        ({"text_config": {"eos_token_id": 7}}, {"eos_token_id": [1, None]}, [1, 7]),
    ],
)
def test_stops(tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, stops: list[int]) -> None:
    """Every place that names an end token counts."""
    assert renderer(tmp_path, config, generation).stops == tuple(stops)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({}, None),
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 32}, 32),
        ({"text_config": {"max_position_embeddings": 16}}, 16),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 4.0}}, 64),
        (
            {
                "max_position_embeddings": 64,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            },
            256,
        ),
    ],
)
def test_context(tmp_path: Path, config: dict[str, Any], context: int | None) -> None:
    """The number of positions, wherever the configuration names it, and what YaRN makes of it."""
    found = renderer(tmp_path, config)
    assert found.context == context
    assert found.room(10, 6)
    assert context is None or (found.room(context, 0) and not found.room(context, 1))


@pytest.mark.parametrize(
    ("factor", "original"), [("1e999", "64"), ("-1e999", "64"), ("NaN", "64"), ("2.0", "1" + 400 * "0"), ("[]", "64")]
)
def test_context_stretched_beyond_numbers(tmp_path: Path, factor: str, original: str) -> None:
    """What YaRN makes of nonsense counts for nothing."""
    renderer(tmp_path)
    rope = f'{{"rope_type": "yarn", "factor": {factor}, "original_max_position_embeddings": {original}}}'
    (tmp_path / "config.json").write_text(
        f'{{"model_type": "llama", "max_position_embeddings": 64, "rope_scaling": {rope}}}'
    )
    assert Renderer(Model("tiny", "0", tmp_path)).context == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": None}, "`tiny` has no chat template; give one with `--chat-template FILE`, or"),
        ({"chat_template": ""}, "`tiny` has no chat template"),
        ({"chat_template": {"rag": "x", "tool": "y"}}, r"several chat templates \(`rag`, `tool`\) and none called"),
        (
            {"chat_template": "{{ raise_exception('roles must alternate') }}"},
            "`tiny`: its chat template fails .*roles must alternate.*; give another with `--chat-template FILE`",
        ),
        ({"given": "{{ 1 // 0 }}"}, "`tiny`: the chat template given fails .ZeroDivisionError"),
        ({"given": "{% for %}"}, "`tiny`: the chat template given fails .TemplateSyntaxError"),
    ],
)
def test_template_faults(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """What is wrong with a template is said with what to do."""
    with pytest.raises(EngineError, match=message):
        renderer(tmp_path, **options).tokens(ASK)


def test_plain_text_needs_no_template(tmp_path: Path) -> None:
    """A base model answers plain prompts."""
    assert renderer(tmp_path, chat_template=None).tokens("hi") == ids("hi")


def test_no_tokenizer(tmp_path: Path) -> None:
    """A checkpoint without tokenizer files is refused by name."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"`tiny` has no tokenizer: .*; copy the tokenizer files of the model"):
        Renderer(Model("tiny", "0", tmp_path))


def test_broken_files(tmp_path: Path) -> None:
    """Files that are no JSON are named."""
    renderer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EngineError, match=r"cannot read `.*config.json`"):
        Renderer(Model("tiny", "0", tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(EngineError, match=r"`tiny`: its tokenizer cannot be loaded .*; copy the tokenizer files"):
        Renderer(Model("tiny", "0", tmp_path))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_files_nested_too_deep(tmp_path: Path, file: str) -> None:
    """A file that no parser takes is named like other broken ones."""
    renderer(tmp_path)
    (tmp_path / file).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(EngineError, match=rf"cannot read `.*{file}`: RecursionError"):
        Renderer(Model("tiny", "0", tmp_path))


def test_versions() -> None:
    """Of what makes prompts tokens."""
    found = renderer_versions()
    assert list(found) == ["transformers", "tokenizers"]
    assert all(found.values())
