from __future__ import annotations

from pathlib import Path

import pytest

from evalkit.errors import TaskError
from evalkit.prompt_template import MAX_OUTPUT, MAX_TEMPLATE, PromptTemplate, load_prompt

DATA = {"cards": ["A", "10"], "target": 24}


def load(directory: Path, content: str | bytes) -> PromptTemplate:
    path = directory / "prompt.jinja"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_prompt(path)


def test_template_renders_the_data(tmp_path: Path):
    """Variables, loops and conditions over the example's data; the file's last newline is no part of the prompt."""
    template = load(tmp_path, "Make {{ target }} of{% for card in cards %} {{ card }}{% endfor %}.<&>\n")
    assert template.render(DATA) == "Make 24 of A 10.<&>"
    assert template.text.endswith("\n")
    assert template == PromptTemplate(template.text)


def test_optional_variables_may_be_asked_for():
    """What only some records have can be tested for."""
    template = PromptTemplate("{% if choices is defined %}{{ choices }}{% else %}none{% endif %}")
    assert template.render(DATA) == "none"
    assert template.render({"choices": "two"}) == "two"


def test_unknown_variable_names_the_known_ones(tmp_path: Path):
    """A variable that the data lack is an error that lists what there is."""
    with pytest.raises(TaskError, match=r"prompt.jinja: 'hand' is undefined; the variables are `cards`, `target`"):
        load(tmp_path, "{{ hand }}").render(DATA)


def test_syntax_error_has_its_line(tmp_path: Path):
    """A template that does not parse is refused when it is loaded."""
    with pytest.raises(TaskError, match=r"prompt.jinja:2: not a Jinja template: .*endfor"):
        load(tmp_path, "{% for card in cards %}\n{% endif %}")
    with pytest.raises(TaskError, match=r"prompt.jinja:1: not a Jinja template: No filter named 'randon'"):
        load(tmp_path, "{{ cards|randon }}")
    deep = "{% for card in cards %}" * 30 + "{% endfor %}" * 30
    with pytest.raises(TaskError, match=r"prompt.jinja: not a Jinja template: SyntaxError"):
        load(tmp_path, deep)
    with pytest.raises(TaskError, match=r"prompt.jinja: not a Jinja template: ValueError"):
        load(tmp_path, "{{ " + "1" * 5000 + " }}")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a" * (MAX_TEMPLATE + 1)])
def test_unfit_files_are_refused(tmp_path: Path, content: bytes):
    """Not UTF-8, or too large."""
    with pytest.raises(TaskError, match="prompt template"):
        load(tmp_path, content)


def test_missing_file_is_named(tmp_path: Path):
    """The path and the system's reason."""
    with pytest.raises(TaskError, match=r"none\.jinja`: No such file"):
        load_prompt(tmp_path / "none.jinja")


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}" + "a" * 100 + "{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 17 }}",
        "{{ 'a'.ljust(10 ** 17) }}",
        "{{ 1|xmlattr }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a'.__class__.__mro__ }}",
        "{{ cards.append(3) }}",
        "{% include 'other' %}",
        "{{ 1 / 0 }}",
        "{{ cards.missing }}",
    ],
)
def test_failing_templates_give_one_message(text: str):
    """Templates that print without end, leave the sandbox, change the data or fail, however, give a TaskError."""
    with pytest.raises(TaskError, match="the prompt template: "):
        PromptTemplate(text).render(DATA)
    assert DATA["cards"] == ["A", "10"]
    assert MAX_OUTPUT < 10**7


@pytest.mark.parametrize("text", ["{{ cards|random }}", "{{ lipsum() }}"])
def test_prompts_do_not_depend_on_chance(tmp_path: Path, text: str):
    """Nothing random is at hand: the same example has the same prompt."""
    with pytest.raises(TaskError, match=r"random|lipsum"):
        load(tmp_path, text).render(DATA)
