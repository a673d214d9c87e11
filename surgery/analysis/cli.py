"""`surgery diff`: options in, the API's verb, tables out."""

from __future__ import annotations

from pathlib import Path

import click

from surgery.options import (
    Rank,
    cache_option,
    device_option,
    exclude_option,
    fresh_option,
    json_option,
    layers_option,
    memory_option,
    print_json,
    tensors_option,
    workers_option,
)


@click.command()
@click.argument("base")
@click.argument("tuned")
@click.argument("third", required=False)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Write report, figures and tables there.")
@click.option(
    "--rank", "ranks", multiple=True, metavar="R", type=Rank(),
    help="Compare leading subspaces of this rank: 768, 20%. Repeat for several; the first is the main one.",
)  # fmt: skip
@layers_option
@tensors_option
@exclude_option
@click.option("--quick", is_flag=True, help="Compute the leading 5 % alone (or --rank): several times faster.")
@workers_option
@memory_option
@device_option
@cache_option
@click.option("--overwrite", is_flag=True, help="Replace an existing DIR, once the new one is complete.")
@fresh_option
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
    from surgery.analysis import api
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
