"""`surgery diff`: options in, the API's verb, tables out."""

from __future__ import annotations

from pathlib import Path

import click

from surgery.options import (
    cache_option,
    device_option,
    json_option,
    memory_option,
    print_json,
    workers_option,
)


def _quantities(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The ranks, found to be ranks."""
    from surgery.quantity import Quantity

    for value in values:
        try:
            rank = Quantity.parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error
        if rank.of(1) == 0:
            raise click.BadParameter(f"found `{value}`; expected at least 1 direction", ctx, param)
    return values


def _layer_range(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The layers, found to be some."""
    from surgery.layers import LayerRange

    if value is not None:
        try:
            LayerRange.parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error
    return value


@click.command()
@click.argument("base")
@click.argument("tuned")
@click.argument("third", required=False)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Write report, figures and tables there.")
@click.option(
    "--rank", "ranks", multiple=True, metavar="R", callback=_quantities,
    help="Compare leading subspaces of this rank: 768, 20%. Repeat for several; the first is the main one.",
)  # fmt: skip
@click.option("--layers", metavar="LAYERS", callback=_layer_range, help="Only these: 0-9, first 25%, last 4.")
@click.option("--tensors", multiple=True, metavar="NAME", help="Only this group (attention, mlp, ...) or glob; repeat.")
@click.option("--exclude", multiple=True, metavar="NAME", help="Leave out this group or glob; repeat.")
@click.option("--quick", is_flag=True, help="Compute the leading 5 % alone (or --rank): several times faster.")
@workers_option
@memory_option
@device_option
@cache_option
@click.option("--overwrite", is_flag=True, help="Replace an existing DIR, once the new one is complete.")
@click.option("--fresh", is_flag=True, help="Drop what an interrupted run left, and start over.")
@json_option
def diff(
    base: str,
    tuned: str,
    third: str | None,
    out: Path | None,
    ranks: tuple[str, ...],
    layers: str | None,
    tensors: tuple[str, ...],
    exclude: tuple[str, ...],
    quick: bool,
    workers: int | None,
    memory: int | None,
    device: str,
    cache: bool,
    overwrite: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Compare the weights of TUNED with those of BASE, and perhaps of a THIRD model, by their singular values and
    directions.

    Prints which layers rotated, and what to try. With --out, a report with figures is written; run again after an
    interruption, it goes on where it was.
    """
    if out is None and (overwrite or fresh):
        raise click.UsageError("`--overwrite` and `--fresh` are for what `--out` names; add it")
    from surgery import api
    from surgery.analysis.console import DiffProgress, print_comparison

    try:
        with DiffProgress() as progress:
            found = api.diff(
                base, tuned, third, out, ranks=ranks, layers=layers, tensors=tensors, exclude=exclude, quick=quick,
                workers=workers, memory=memory, device=device, cache=cache, overwrite=overwrite, fresh=fresh,
                progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        if out is not None:
            click.echo("what is measured is kept: run the same command again to go on", err=True)
        raise
    if as_json:
        from surgery.analysis.summary import summary

        print_json(summary(found))
    else:
        print_comparison(found, out)
