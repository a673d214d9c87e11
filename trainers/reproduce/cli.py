"""`surgery reproduce`: options in, the verb, where everything stands out."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import click

from surgery.options import json_option, print_json
from trainers.interrupts import Terminated

TERMINATED = 128 + signal.SIGTERM  # as the shell has it


@click.command()
@click.argument("pipeline")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where everything goes.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Run seeds 0 to N - 1.")
@click.option("--only", multiple=True, metavar="STAGE", help="Run this stage alone; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Show what every stage would do and take, and do nothing.")
@click.option("--report", "only_report", is_flag=True, help="Make the report of what is there, and run nothing.")
@click.option("--fresh", is_flag=True, help="Make anew stages whose commands have changed, and all after them.")
@json_option
def reproduce(
    pipeline: str,
    out: Path,
    seeds: int,
    only: tuple[str, ...],
    dry_run: bool,
    only_report: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Redo the paper's experiment by PIPELINE, with one report at the end.

    PIPELINE is `mini` (from nothing, on two processor cores), `paper` (the 7B and 11B runs), or a YAML file. Every
    stage is an ordinary command of `surgery`. Run again, it passes over what is finished and goes on where it was.
    """
    from trainers.reproduce import api
    from trainers.reproduce.console import PipelineProgress, print_dry_run, print_outcome

    if dry_run and only_report:
        raise click.UsageError("`--dry-run` plans, `--report` shows what is there; give one of them")
    if dry_run:
        planned = api.plan(pipeline, out, seeds=seeds)
        if as_json:
            print_json(planned.json())
        else:
            print_dry_run(planned)
        return
    again = shlex.join(["surgery", "reproduce", pipeline, "--out", str(out), *_seeds(seeds), *_only(only)])
    if only_report:
        outcome = api.report(pipeline, out, seeds=seeds)
    else:
        try:
            with PipelineProgress() as progress:
                outcome = api.reproduce(pipeline, out, seeds=seeds, only=only, fresh=fresh, watch=progress)
        except KeyboardInterrupt:
            click.echo(f"what is finished is kept; to go on: {again}", err=True)
            raise
        except Terminated:
            click.echo(f"terminated; what is finished is kept; to go on: {again}", err=True)
            raise click.exceptions.Exit(TERMINATED) from None
    if as_json:
        print_json(outcome.json())
    else:
        print_outcome(outcome, again)
    if only_report:
        return
    asked = outcome.asked(seeds, only)
    failed = [each for each in asked if each in outcome.failed]
    waiting = [each for each in asked if only and each.state == "waiting"]
    if waiting and not failed:
        told = ", ".join(f"`{each.stage.name}` (seed {each.seed}) {each.message}" for each in waiting)
        click.echo(f"error: {told}; run that first", err=True)
        raise click.exceptions.Exit(1)
    if failed:
        names = ", ".join(f"`{each.stage.name}` (seed {each.seed})" for each in failed)
        click.echo(f"error: failed: {names}; once that is mended, go on by: {again}", err=True)
        raise click.exceptions.Exit(1)


def _only(only: tuple[str, ...]) -> list[str]:
    return [word for stage in only for word in ("--only", stage)]


def _seeds(seeds: int) -> list[str]:
    return ["--seeds", str(seeds)] if seeds > 1 else []
