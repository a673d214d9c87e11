"""Options and output that the commands share, those of the packages above included."""

from __future__ import annotations

import json

import click


def name_values(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Callback of a repeated option `NAME=VALUE`: the values by name. Raises BadParameter."""
    settings = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not sign or not name.strip():
            raise click.BadParameter(f"found `{value}`; expected NAME=VALUE")
        if name.strip() in settings:
            raise click.BadParameter(f"found `{name.strip()}` twice; give it one value")
        settings[name.strip()] = text.strip()
    return settings


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")


def print_json(value: object) -> None:
    """A machine-readable result on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
