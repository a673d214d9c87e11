"""The command line: options in, the API's verbs, messages out. The packages above add commands by entry points."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from surgery.errors import SurgeryError
from surgery.extraction.cli import extract_lora
from surgery.options import (
    cache_option,
    device_option,
    durable_option,
    fresh_option,
    json_option,
    memory_option,
    name_values,
    overwrite_option,
    print_json,
    workers_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgery.recipe import Recipe

COMMANDS_GROUP = "surgery.commands"
INTERRUPTED = 130  # the shell's code for a process that Ctrl-C ended


class _Commands(click.Group):
    """Our commands, and those of installed packages; the latter are imported when they are listed or called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group=COMMANDS_GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            for entry in entry_points(group=COMMANDS_GROUP, name=cmd_name):
                command = entry.load()
                assert isinstance(command, click.Command), f"{entry} is no click command"
                return command
        return found


_set = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", callback=name_values,
    help="Give a parameter of the recipe a value, or a key of its output: head=40%, output.dtype=float16.",
)  # fmt: skip


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="surgery")
def cli() -> None:
    """Edit fine-tuned language models by operating on their weights.

    A MODEL is a directory, a .safetensors file, or a hub id org/name[@revision], and perhaps a LoRA adapter behind
    it: MODEL+ADAPTER. A RECIPE is a YAML file or the name of a bundled one; it may be a recipe file of mergekit, which
    names its own models.
    """


@cli.command()
@click.argument("recipe")
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.argument("out", type=click.Path(path_type=Path))
@_set
@workers_option
@memory_option
@device_option
@cache_option
@overwrite_option
@fresh_option
@durable_option
@json_option
def apply(
    recipe: str,
    models: tuple[str, ...],
    out: Path,
    settings: dict[str, str],
    workers: int | None,
    memory: int | None,
    device: str,
    cache: bool,
    overwrite: bool,
    fresh: bool,
    durable: bool,
    as_json: bool,
) -> None:
    """Edit MODELs by RECIPE into the checkpoint OUT.

    MODELs are bound, in order, to the recipe's `models`; without them, those that a recipe file of mergekit names
    are. Run again after an interruption, it goes on where it was.
    """
    from surgery import api
    from surgery.console import ApplyProgress, print_applied
    from surgery.plan_json import plan_json

    loaded = _loaded(recipe, models, settings)
    try:
        with ApplyProgress() as progress:
            applied = api.apply(
                loaded, models, out, workers=workers, memory=memory, device=device,
                cache=cache, overwrite=overwrite, fresh=fresh, durable=durable, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        click.echo("what is finished is kept: run the same command again to go on", err=True)
        raise
    if as_json:
        print_json({"out": str(applied.out), "resumed": applied.resumed, **plan_json(applied.plan)})
    else:
        print_applied(applied)
        for remark in applied.plan.remarks:
            click.echo(f"note: {remark}", err=True)


@cli.command()
@click.argument("recipe")
@click.argument("models", nargs=-1, metavar="MODEL...")
@_set
@workers_option
@memory_option
@json_option
def plan(
    recipe: str,
    models: tuple[str, ...],
    settings: dict[str, str],
    workers: int | None,
    memory: int | None,
    as_json: bool,
) -> None:
    """Show what `apply` would change, and what it costs, without reading a tensor."""
    from surgery import api
    from surgery.console import print_plan
    from surgery.plan_json import plan_json, tensor_json
    from surgery.workers import default_workers

    made = api.plan(_loaded(recipe, models, settings), models)
    if memory is not None:
        made.check_memory(memory)
    if as_json:
        print_json({**plan_json(made), "tensors": [tensor_json(made, tensor) for tensor in made.tensors]})
    else:
        print_plan(made, workers or default_workers())


@cli.command()
@click.argument("out", type=click.Path(path_type=Path))
@workers_option
@json_option
def verify(out: Path, workers: int | None, as_json: bool) -> None:
    """Read OUT again and compare every tensor and file with its manifest."""
    from surgery import api
    from surgery.console import print_verified

    verified = api.verify(out, workers=workers)
    if as_json:
        print_json({"out": str(out), "tensors": verified.tensors, "files": verified.files, "bytes": verified.nbytes})
    else:
        print_verified(str(out), verified)


@cli.command()
@click.argument("model")
@json_option
def inspect(model: str, as_json: bool) -> None:
    """Show the layers, groups, shapes, dtypes and size of MODEL."""
    from dataclasses import asdict

    from surgery import api
    from surgery.console import print_inspected
    from surgery.inventory import inventory

    checkpoint = api.inspect(model)
    if not as_json:
        print_inspected(checkpoint)
        return
    anatomy = checkpoint.anatomy
    print_json(
        {
            "model": checkpoint.source,
            "decoder": anatomy.decoder.prefix if anatomy.decoder else None,
            "stacks": {stack.prefix: stack.layers for stack in anatomy.stacks.values()},
            "tied": checkpoint.tied,
            "files": [shard.name for shard in checkpoint.shards],
            "adapters": [adapter.json() for adapter in checkpoint.adapters],
            "notes": list(checkpoint.notes),
            "modules": [asdict(row) for row in inventory(checkpoint)],
        }
    )


@cli.command()
@click.argument("name", required=False)
@json_option
def recipes(name: str | None, as_json: bool) -> None:
    """List the bundled recipes, or print the one called NAME."""
    from surgery import bundled
    from surgery.recipe import load

    if name is not None:
        text = bundled.read(name)
        if as_json:
            print_json(load(name, {}).canonical())
        else:
            click.echo(text, nl=not text.endswith("\n"))
        return
    found = {known: load(known, {}) for known in bundled.names()}
    if as_json:
        print_json([{"name": known, "summary": recipe.summary} for known, recipe in found.items()])
        return
    width = max(map(len, found))
    for known, recipe in found.items():
        click.echo(f"{known:{width}}  {' '.join(recipe.models)}: {recipe.summary}")


@cli.command()
def schema() -> None:
    """Print the JSON Schema of the recipe format."""
    from surgery import api

    print_json(api.schema())


@cli.command()
@click.argument("merge_file", metavar="MERGE_FILE")
@json_option
def convert(merge_file: str, as_json: bool) -> None:
    """Print the recipe that does what mergekit does with MERGE_FILE, one of its recipe files.

    `surgery apply MERGE_FILE OUT` runs such a file as it is.
    """
    from surgery.errors import Fault, RecipeError
    from surgery.recipe import load

    recipe = load(merge_file, {})
    if not recipe.named:
        message = f"`{merge_file}` is no recipe file of mergekit: expected a map with `merge_method`"
        raise RecipeError([Fault(recipe.origin, message)])
    if as_json:
        notes = [str(note) for note in recipe.notes]
        print_json({"recipe": recipe.canonical(), "models": dict(recipe.named), "notes": notes})
        return
    click.echo(f"# surgery apply RECIPE {shlex.join(recipe.named.values())} OUT")
    click.echo(recipe.text, nl=False)


def _loaded(source: str, models: Sequence[str], settings: dict[str, str]) -> Recipe:
    """The recipe; what there is to say about one of mergekit's goes to stderr."""
    from surgery.recipe import load
    from surgery.wording import quoted

    loaded = load(source, settings)
    if not models and not loaded.named:
        message = f"Missing argument 'MODEL...': `{loaded.name}` needs {quoted(loaded.models)}."
        raise click.UsageError(message, click.get_current_context())
    for note in loaded.notes:
        click.echo(f"note: {note}", err=True)
    return loaded


cli.add_command(extract_lora)


def main() -> None:
    """Run the command line; every foreseeable fault is one message and an exit code."""
    gc.set_threshold(100_000)  # loading torch creates many objects and no garbage: 0.1 s less
    if sys.stdout is None:  # closed by the caller: results go nowhere
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    try:
        code = cli.main(standalone_mode=False) or 0
        sys.stdout.flush()
    except SurgeryError as error:
        code = _told(f"error: {error}", 1)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = _told("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        code = 1
    except OSError as error:  # of stdout: everything else comes as a SurgeryError
        code = _told(f"error: cannot write the result: {error.strerror or error}", 1)
    _leave(code)


def _told(message: str, code: int) -> int:
    click.echo(message, err=True)
    return code


def _leave(code: int) -> NoReturn:
    """End the process at once: tearing torch down takes 0.3 s, and aborts while a worker is alive (second Ctrl-C)."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
