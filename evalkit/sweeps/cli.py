"""`surgery sweep`: options in, the verb, a table out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evalkit.extras import installed
from surgery.errors import SurgeryError
from surgery.options import (
    Size,
    cache_option,
    device_option,
    json_option,
    memory_option,
    name_values,
    print_json,
    workers_option,
)


def _list(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        with installed("sweep", "eval,diff"):
            from evalkit.sweeps.loading import FOLDER, load
            from surgery import bundled

            found = {name: load(name)[0] for name in bundled.names(FOLDER)}
        width = max(map(len, found))
        for name, each in found.items():
            click.echo(f"{name:{width}}  {' '.join(each.models)}: {each.summary}")
        ctx.exit()


def _show(ctx: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is not None:
        with installed("sweep", "eval,diff"):
            from evalkit.sweeps.loading import FOLDER
            from surgery import bundled

            click.echo(bundled.read(name, FOLDER), nl=False)
        ctx.exit()


@click.command()
@click.argument("sweep")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("sweep"), show_default=True, help="Where it goes.")
@click.option(
    "--keep",
    type=click.Choice(["best", "pareto", "all", "none"]),
    help="Which checkpoints stay; those of earlier runs that are not among them go. Default: the sweep's.",
)
@click.option("--n", type=click.IntRange(1), help="Examples of each split. Default: the sweep's.")
@click.option("--engine", help="vllm or transformers. Default: the sweep's.")
@click.option(
    "--engine-option", "engine_options", multiple=True, metavar="NAME=VALUE", callback=name_values,
    help="Passed to the engine: tensor_parallel_size=4, device=cuda, batch_size=16.",
)  # fmt: skip
@click.option(
    "--disk",
    type=Size(),
    metavar="SIZE",
    help="For variants that may go again, the best so far among them; what stays with `all` or `pareto` is beside it. "
    "Default: half of what is free.",
)
@click.option("--dry-run", is_flag=True, help="Show the variants and what they cost, and make nothing.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List bundled sweeps.")
@click.option(
    "--show", metavar="NAME", is_eager=True, expose_value=False, callback=_show,
    help="Print a bundled sweep, to be changed.",
)  # fmt: skip
@workers_option
@memory_option
@device_option
@cache_option
@json_option
def sweep(
    sweep: str,
    models: tuple[str, ...],
    out: Path,
    keep: Any,
    n: int | None,
    engine: str | None,
    engine_options: dict[str, str],
    disk: int | None,
    dry_run: bool,
    workers: int | None,
    memory: int | None,
    device: str,
    cache: bool,
    as_json: bool,
) -> None:
    """Try the variants of SWEEP on MODELs, score them in and out of distribution, and keep the best.

    SWEEP is a YAML file or the name of a bundled one; MODELs are bound, in order, to its `models`. Run again, also with
    more values or more examples, it does only what is not done.
    """
    with installed("sweep", "eval,diff"):
        from evalkit.sweeps.console import SweepProgress, print_bound, print_sweep
        from evalkit.sweeps.sweep import plan_sweep
        from evalkit.sweeps.sweep import sweep as run

    options = engine_options or None
    if dry_run:
        with installed("sweep", "eval,diff"):
            bound = plan_sweep(sweep, models, device=device, n=n, engine=engine, engine_options=options)
            bound.check_prompts()
        if as_json:
            print_json(bound.json())
        else:
            print_bound(bound)
        return
    progress = SweepProgress()
    try:
        with installed("sweep", "eval,diff"):
            result = run(
                sweep, models, out, keep=keep, n=n, engine=engine, engine_options=options, workers=workers,
                memory=memory, device=device, cache=cache, disk=disk, progress=progress,
            )  # fmt: skip
    except (KeyboardInterrupt, SurgeryError):
        if progress.began:
            click.echo("what is finished is kept: run the same command again to go on", err=True)
        raise
    if as_json:
        print_json(result.json())
    else:
        print_sweep(result, str(out))
    if all(row.error is not None for row in result.rows if row.kind != "model"):
        click.get_current_context().exit(1)  # nothing could be made
