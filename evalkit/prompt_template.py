"""A prompt of the user's own, as a Jinja template over an example's data (`--prompt FILE`).

The file is the user's own. It runs in Jinja's sandbox, so that it can neither reach the machine nor change the data;
what it may cost in time and memory is not bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.errors import TaskError, first_line
from surgery.wording import quoted

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEMPLATE = 1_000_000  # bytes
MAX_OUTPUT = 1_000_000  # characters; a longer prompt fits no model's context


@dataclass(frozen=True)
class PromptTemplate:
    """A template's text; `origin` is the file it comes from, for messages."""

    text: str
    origin: str = field(default="the prompt template", compare=False)

    def render(self, data: Mapping[str, Any]) -> str:
        """The prompt of one example, whose data are the template's variables.

        Raises TaskError for a variable that the data lack, for whatever else fails in the template, and where the
        prompt grows beyond a million characters.
        """
        from jinja2 import UndefinedError

        prompt = ""
        try:
            for piece in self._template.generate(dict(data)):
                prompt += piece
                if len(prompt) > MAX_OUTPUT:
                    break
        except UndefinedError as error:
            raise TaskError(f"{self.origin}: {error.message}; the variables are {quoted(data)}") from error
        except Exception as error:  # templates are programs: their filters and methods raise what they like
            raise TaskError(f"{self.origin}: cannot render an example: {first_line(error)}") from error
        if len(prompt) > MAX_OUTPUT:
            raise TaskError(f"{self.origin}: a prompt grows beyond {MAX_OUTPUT:,} characters; look for a loop in it")
        return prompt

    @cached_property
    def _template(self) -> Template:
        return _environment().from_string(self.text)


def load_prompt(path: Path) -> PromptTemplate:
    """Read a template. Raises TaskError where the file cannot be read or is no template, with the line."""
    from jinja2 import TemplateSyntaxError

    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise TaskError(f"cannot read the prompt template `{path}`: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskError(
            f"the prompt template `{path}` is not UTF-8 (byte {error.start + 1}); save it as UTF-8"
        ) from error
    if len(content) > MAX_TEMPLATE:
        raise TaskError(f"the prompt template `{path}` has {len(content):,} bytes; at most {MAX_TEMPLATE:,} are taken")
    template = PromptTemplate(text, str(path))
    try:
        _ = template._template
    except TemplateSyntaxError as error:
        raise TaskError(f"{path}:{error.lineno}: not a Jinja template: {error.message}") from error
    except Exception as error:  # Python's own, of nesting too deep or numbers too long
        raise TaskError(f"{path}: not a Jinja template: {first_line(error)}") from error
    return template


def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # `keep_trailing_newline` stays off: editors end a file with a newline that no prompt means.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    # An example's prompt is the same for every model and in every run.
    del environment.filters["random"], environment.globals["lipsum"]
    return environment
