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


class Size(click.ParamType[int]):
    """A size such as `2GB`, in bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from surgery.size import parse_size

        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


workers_option = click.option(
    "--workers", type=click.IntRange(1, 1024), help="Tensors at a time. Default: the processors. Same bytes for any."
)
memory_option = click.option("--memory", type=Size(), metavar="SIZE", help="Bound the process's memory: 2GB, 500MiB.")
device_option = click.option(
    "--device", default="cpu", show_default=True, help="Where the arithmetic runs: cpu, cuda, cuda:1."
)
cache_option = click.option(
    "--cache/--no-cache", default=True, help="Keep decompositions for other runs (default), in $SURGERY_CACHE."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")


def print_json(value: object) -> None:
    """A machine-readable result on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
