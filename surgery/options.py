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


class Rank(click.ParamType[str]):
    """A count or a percentage of directions, at least one; the text as it was typed."""

    name = "rank"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from surgery.quantity import Quantity

        try:
            rank = Quantity.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if rank.of(1) == 0:
            self.fail(f"found `{value}`; expected at least 1 direction", param, ctx)
        return value


class Layers(click.ParamType[str]):
    """Layers of a stack, as recipes write them; the text as it was typed."""

    name = "layers"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from surgery.layers import LayerRange

        try:
            LayerRange.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


layers_option = click.option("--layers", type=Layers(), metavar="LAYERS", help="Only these: 0-9, first 25%, last 4.")
tensors_option = click.option(
    "--tensors", multiple=True, metavar="NAME", help="Only this group (attention, mlp, ...) or glob; repeat."
)
exclude_option = click.option("--exclude", multiple=True, metavar="NAME", help="Leave out this group or glob; repeat.")
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace an existing OUT, once the new one is complete."
)
fresh_option = click.option("--fresh", is_flag=True, help="Drop what an interrupted run left, and start over.")
durable_option = click.option(
    "--durable", is_flag=True, help="Wait until the disk holds everything (against power failures)."
)
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
