"""`surgery extract-lora`: options in, the API's verb, a table out."""

from __future__ import annotations

from pathlib import Path

import click

from surgery.options import device_option, json_option, memory_option, print_json, workers_option


def _quantity(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The rank, found to be one."""
    from surgery.quantity import Quantity

    if value is not None:
        try:
            rank = Quantity.parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error
        if rank.of(1) == 0:
            raise click.BadParameter(f"found `{value}`; expected at least 1", ctx, param)
    return value


def _layer_range(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The layers, found to be some."""
    from surgery.layers import LayerRange

    if value is not None:
        try:
            LayerRange.parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error
    return value


@click.command("extract-lora")
@click.argument("base")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--rank", metavar="R", callback=_quantity, help="Rank of each matrix: 64, 10%.")
@click.option(
    "--error", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="E",
    help="Instead: for each matrix the smallest rank whose relative error is at most this.",
)  # fmt: skip
@click.option("--layers", metavar="LAYERS", callback=_layer_range, help="Only these: 0-9, first 25%, last 4.")
@click.option("--tensors", multiple=True, metavar="NAME", help="Only this group (attention, mlp, ...) or glob; repeat.")
@click.option("--exclude", multiple=True, metavar="NAME", help="Leave out this group or glob; repeat.")
@click.option("--save", multiple=True, metavar="NAME", help="Store these whole where they differ: norm, embedding.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
    help="Of the factors.",
)  # fmt: skip
@workers_option
@memory_option
@device_option
@click.option("--overwrite", is_flag=True, help="Replace an existing OUT, once the new one is complete.")
@click.option("--fresh", is_flag=True, help="Drop what an interrupted run left, and start over.")
@click.option("--durable", is_flag=True, help="Wait until the disk holds everything (against power failures).")
@json_option
def extract_lora(
    base: str,
    model: str,
    out: Path,
    rank: str | None,
    error: float | None,
    layers: str | None,
    tensors: tuple[str, ...],
    exclude: tuple[str, ...],
    save: tuple[str, ...],
    dtype: str,
    workers: int | None,
    memory: int | None,
    device: str,
    overwrite: bool,
    fresh: bool,
    durable: bool,
    as_json: bool,
) -> None:
    """Make the LoRA adapter over BASE that comes closest to MODEL, and tell what it keeps of the change.

    OUT is a directory that PEFT loads, and `BASE+OUT` is a model here. Run again after an interruption, it goes on
    where it was.
    """
    if (rank is None) == (error is None):
        raise click.UsageError("give one of `--rank` and `--error`, such as `--rank 64` or `--error 0.05`")
    from surgery import api
    from surgery.extraction.console import ExtractProgress, print_extracted

    try:
        with ExtractProgress() as progress:
            extracted = api.extract_lora(
                base, model, out, rank=rank, error=error, layers=layers, tensors=tensors, exclude=exclude, save=save,
                dtype=dtype, workers=workers, memory=memory, device=device, overwrite=overwrite, fresh=fresh,
                durable=durable, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        click.echo("what is finished is kept: run the same command again to go on", err=True)
        raise
    if as_json:
        print_json({"out": str(extracted.out), **extracted.json()})
    else:
        print_extracted(extracted)
