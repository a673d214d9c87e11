"""The words of a stage, read by the command that will get them: what is wrong with them is known before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from surgery.cli import cli
from surgery.errors import Fault
from surgery.wording import suggestion
from trainers.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Parsed:
    """A command, such as `train sft`, and the values of its arguments and options by their names."""

    command: str
    values: Mapping[str, Any]


def parse(words: Sequence[str]) -> Parsed:
    """What `surgery WORDS` would do. Raises ConfigError where it would refuse to begin."""
    found: click.Command = cli
    path: list[str] = []
    rest = list(words)
    while isinstance(found, click.Group):
        name = rest.pop(0) if rest else ""
        context = click.Context(found)
        inner = found.get_command(context, name)
        if inner is None:
            known = suggestion(name, found.list_commands(context), "the commands")
            raise ConfigError([Fault("", f"`{' '.join(['surgery', *path])}` has no command `{name}`; {known}")])
        found = inner
        path.append(name)
    try:
        with found.make_context(" ".join(path), rest) as made:
            return Parsed(" ".join(path), dict(made.params))
    except click.exceptions.Exit as error:
        raise ConfigError([Fault("", f"`{' '.join(path)}`: found an option that only prints something")]) from error
    except click.ClickException as error:
        raise ConfigError([Fault("", f"`{' '.join(path)}`: {error.format_message()}")]) from error
