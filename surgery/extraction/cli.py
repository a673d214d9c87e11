"""`surgery extract-lora`: options in, the API's verb, a table out."""

from __future__ import annotations

from pathlib import Path

import click

from surgery.options import (
    Rank,
    device_option,
    durable_option,
    exclude_option,
    fresh_option,
    json_option,
    layers_option,
    memory_option,
    overwrite_option,
    print_json,
    tensors_option,
    workers_option,
)


@click.command("extract-lora")
@click.argument("base")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--rank", metavar="R", type=Rank(), help="Rank of each matrix: 64, 10%.")
@click.option(
    "--error", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="E",
    help="Instead: for each matrix the smallest rank whose relative error is at most this.",
)  # fmt: skip
@layers_option
@tensors_option
@exclude_option
@click.option("--save", multiple=True, metavar="NAME", help="Store these whole where they differ: norm, embedding.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
    help="Of the factors.",
)  # fmt: skip
@workers_option
@memory_option
@device_option
@overwrite_option
@fresh_option
@durable_option
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
    from surgery.extraction import api
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
