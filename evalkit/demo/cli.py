"""`surgery demo`: the main job on small checkpoints, in a few minutes and without a network."""

from __future__ import annotations

from pathlib import Path

import click

from evalkit.extras import installed
from surgery.errors import SurgeryError
from surgery.options import json_option, print_json


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=Path("demo-out"))
@click.option("--n", type=click.IntRange(1), help="Examples of each split. Default: 600.")
@json_option
def demo(out: Path, n: int | None, as_json: bool) -> None:
    """Edit, score and compare four small checkpoints that come with the package, in OUT (default: demo-out).

    A base model that learned a card game from nothing, its Inter-SFT, SFT and RL checkpoints; the recipes that are
    bundled, controls and plain averages among them; scores in and out of distribution, and what they say.
    """
    with installed("demo", "eval,diff"):
        from evalkit.demo.console import print_demo
        from evalkit.demo.run import run_demo
        from evalkit.sweeps.console import SweepProgress

    try:
        with installed("demo", "eval,diff"):
            result = run_demo(out, n, SweepProgress())
    except (KeyboardInterrupt, SurgeryError):
        click.echo("what is finished is kept: run the same command again to go on", err=True)
        raise
    if as_json:
        print_json(result.json())
    else:
        print_demo(result, str(out))
